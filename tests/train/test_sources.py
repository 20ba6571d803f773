import json
import os

import pytest

from eagle.errors import DataError
from eagle.train.data.sources import Conversation, Passage, read_sources
from eagle.train.spec.config import SourceSpec

TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": " b\n"}]


def read(path, format="auto"):
    return list(read_sources([SourceSpec(path=str(path), format=format)]))


def test_reads_sharegpt(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"id": "x_0", "conversations": TALK}]))
    (one,) = read(path)
    assert one.group == "x"
    assert one.messages == (("user", "a"), ("assistant", "b"))


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_reads_a_file_that_is_cut_off_up_to_the_last_whole_conversation(tmp_path, cut):
    text = json.dumps([{"id": f"x{i}", "conversations": TALK} for i in range(3)], indent=2)
    path = tmp_path / "talk.json"
    path.write_text(text[: -len(json.dumps(TALK)) - cut])
    assert len(read(path)) == 2


def test_reads_messages_one_a_line(tmp_path):
    path = tmp_path / "talk.jsonl"
    line = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}
    path.write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}\n")
    first, second = read(path)
    assert first.messages == (("system", "s"), ("user", "a"))
    assert first.group != second.group


def test_turns_before_the_first_question_are_left_out(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"id": "x", "conversations": [TALK[1], *TALK]}]))
    assert [role for role, _ in read(path)[0].messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    "record",
    [
        3,
        {},
        {"text": 3},
        {"conversations": ["a"]},
        {"messages": 1},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    ],
)
def test_something_else_is_refused_with_its_place(tmp_path, record):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([record]))
    with pytest.raises(DataError, match=r"talk.json:0: not a conversation"):
        read(path)


@pytest.mark.parametrize(
    ("form", "record"),
    [("messages", {"text": "a"}), ("sharegpt", {"text": "a"}), ("text", {"messages": TALK})],
)
def test_a_format_that_is_named_takes_nothing_else(tmp_path, form, record):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps([record]) if form == "sharegpt" else json.dumps(record))
    with pytest.raises(DataError, match="not a conversation: it should be"):
        read(path, form)


def test_turns_are_read_under_every_name_and_in_every_shape(tmp_path):
    path = tmp_path / "talk.jsonl"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    records = [
        {"conversations": [{"role": "user", "content": "ab"}, {"from": "gpt", "value": "c"}]},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]},
        {"conversations": {"from": ["human", "gpt"], "value": ["ab", "c"]}},
        {"messages": None, "conversations": [{"from": "human", "value": "ab"}, TALK[1]]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    *same, last = read(path)
    assert {one.messages for one in same} == {(("user", "ab"), ("assistant", "c"))}
    assert last.messages == (("user", "ab"), ("assistant", "b"))


def test_a_turn_without_words_is_an_empty_one(tmp_path):
    path = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    path.write_text(json.dumps({"messages": turns}))
    assert read(path)[0].messages == (("user", "a"), ("assistant", ""))


def test_a_text_file_is_one_text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\ufeffOne.\n\nTwo.\n", encoding="utf-8")
    assert read(path) == [Passage("book.txt", "One.\n\nTwo.\n")]
    assert read(path, "text") == read(path)
    other = path.rename(tmp_path / "book.md")
    assert read(other, "text")[0].text == "One.\n\nTwo.\n"


def test_lines_of_text_are_texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a", "id": "b_3"}\n{"text": "c"}\n')
    assert read(path) == [Passage("b", "a"), Passage("texts.jsonl:2", "c")]


def test_text_is_taken_where_a_record_has_both_and_text_is_asked_for(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text(json.dumps({"text": "a", "messages": []}))
    assert read(path, "text") == [Passage("both.jsonl:1", "a")]
    assert isinstance(read(path)[0], Conversation)


def test_line_ends_inside_of_strings_end_no_line(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert read(path)[0].text == "a\u2028b\x85c"


def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match=rf"{name}:1: cannot be read: the byte 0xff"):
            read(tmp_path / name)
        # Far behind what is read at once.
        (tmp_path / name).write_bytes(b'{"text": "a"}\n' * 5000 + b'{"text": "a\xfe"}\n')
        with pytest.raises(DataError, match=rf"{name}:5001: cannot be read: the byte 0xfe"):
            read(tmp_path / name)


def test_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text('{"messages": []}\n{"mess": \n{"messages": []}\n')
    with pytest.raises(DataError, match=r"talk.jsonl:2: not a line of JSON: Expecting value$"):
        read(path)


@pytest.mark.parametrize(
    ("name", "message"), [("a.json", "element 0 is nested"), ("a.jsonl", "1: not a line of JSON")]
)
def test_what_is_nested_too_deep_is_refused(tmp_path, name, message):
    (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "record",
    [
        {"text": "a \ud800"},
        {"text": "a", "id": "\ud800_1"},
        {"messages": [*TALK, TALK[0] | {"content": "\ud800"}]},
        {"messages": [*TALK, {"role": "\udc00", "content": "a"}]},
    ],
)
def test_half_of_a_surrogate_pair_is_no_text(tmp_path, name, record):
    text = json.dumps([record] if name == "a.json" else record)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}:\d: holds half of a surrogate pair"):
        read(tmp_path / name)


@pytest.mark.parametrize("text", ["{}", "", "hello"])
def test_file_that_is_no_list_is_refused(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a JSON list of conversations"):
        read(path)


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.jsonl", "\n"), ("a.txt", "\n")])
def test_empty_dataset_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match="holds no conversation and no text"):
        read(path)


def test_missing_file_is_named_with_the_embedded_datasets(tmp_path):
    with pytest.raises(DataError, match=r"no file .*none.json \(embedded datasets: sharegpt;"):
        read(tmp_path / "none.json")


def one(tmp_path, **record):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps(record))
    (found,) = read(path)
    return found


def test_the_system_field_of_a_record_is_its_first_turn(tmp_path):
    found = one(tmp_path, system="Be brief.\n", conversations=TALK)
    assert found.messages == (("system", "Be brief."), ("user", "a"), ("assistant", "b"))
    assert found.dropped == ()
    assert one(tmp_path, system=None, conversations=TALK).messages == found.messages[1:]


def test_a_system_field_beside_a_system_turn_is_dropped_and_counted(tmp_path):
    turns = [{"from": "system", "value": "s"}, *TALK]
    found = one(tmp_path, system="other", conversations=turns)
    assert found.messages[0] == ("system", "s")
    assert found.dropped == ("`system` of records whose turns have one",)


def test_a_system_field_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a conversation"):
        one(tmp_path, system=["s"], conversations=TALK)


@pytest.mark.parametrize("role", ["model", "Model", "GPT", "assistant"])
def test_names_of_an_assistant(tmp_path, role):
    turns = [{"role": "Human", "content": "a"}, {"role": role, "content": "b"}]
    assert [role for role, _ in one(tmp_path, messages=turns).messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("    def f():\n        pass\n", "    def f():\n        pass"),
        ("\tx", "\tx"),
        ("  x", "  x"),
        (" x", "x"),
        ("\n\n  x \n y \n", "  x \n y"),
        (" \n x", "x"),
        (" \n ", ""),
    ],
)
def test_the_first_indent_is_kept(tmp_path, said, kept):
    turns = [TALK[0], {"from": "gpt", "value": said}]
    assert one(tmp_path, conversations=turns).messages[1][1] == kept


def test_calls_of_tools_without_words_are_empty_turns_and_counted(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    turns = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "3"}]
    found = one(tmp_path, messages=turns, tools=[{"name": "f"}])
    assert found.messages == (("user", "a"), ("assistant", ""), ("tool", "3"))
    assert found.dropped == ("`tool_calls` of turns", "`tools` of records")


def test_what_is_not_read_is_counted(tmp_path):
    turns = [TALK[1], TALK[1], TALK[0], TALK[1] | {"reasoning_content": "hm"}]
    assert sorted(one(tmp_path, conversations=turns).dropped) == [
        "`reasoning_content` of turns",
        "turns before the first question",
        "turns before the first question",
    ]


def test_a_list_that_breaks_off_is_said(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}])[:-5])
    said = []
    assert len(list(read_sources([SourceSpec(path=str(path))], say=said.append))) == 1
    assert said == ["talk.json breaks off in element 1; the 1 before it are used"]


@pytest.mark.parametrize(
    "broken",
    [
        '{"text": oops}',
        '{"text": "a\nb"}',
        '{"text": "a\0"}',
        '{"text": "\\x"}',
        '{"text" "a"}',
        ",",
    ],
)
def test_a_list_that_goes_on_behind_what_is_no_json_is_refused_with_its_line(tmp_path, broken):
    path = tmp_path / "talk.json"
    path.write_text('[{"text": "a"},\n{"text": "b"},\n' + broken + ',\n{"text": "c"}]')
    with pytest.raises(DataError, match=r"talk\.json:3: element 2 is not JSON: \w"):
        read(path)


@pytest.mark.parametrize(
    "cut", ["", ",", '{"a', '{"a": "\\', '{"a": "\\ud8', '{"a": fals', '{"a": -']
)
def test_a_list_may_break_off_anywhere(tmp_path, cut):
    path = tmp_path / "talk.json"
    path.write_text('[{"text": "a"},\n{"text": "b"},\n' + cut)
    assert [item.text for item in read(path)] == ["a", "b"]


def test_a_second_list_behind_the_first_is_not_left_out(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text('[{"text": "a"}]\n[{"text": "b"}]\n')
    with pytest.raises(DataError, match=r"talk\.json:2: there is more behind the list"):
        read(path)


def test_a_files_name_may_be_of_any_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"talk\xff.jsonl")
    path.write_text(json.dumps({"messages": TALK}))
    assert read(tmp_path)[0].group == "talk\\udcff.jsonl:1"


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text('[{"text": ' + "9" * 5000 + "}]")
    with pytest.raises(DataError, match=r"talk\.json: element 0 cannot be read"):
        read(path)
