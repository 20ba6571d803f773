import json

import pytest

from eagle.errors import DataError
from eagle.train.config import SourceSpec
from eagle.train.sources import read_sources

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


@pytest.mark.parametrize("record", [3, {"text": "a"}, {"conversations": ["a"]}, {"messages": 1}])
def test_something_else_is_refused_with_its_place(tmp_path, record):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([record]))
    with pytest.raises(DataError, match=r"talk.json:0: not a conversation"):
        read(path)


def test_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text('{"messages": []}\n{"mess')
    with pytest.raises(DataError, match=r"talk.jsonl:2: not a line of JSON"):
        read(path)


@pytest.mark.parametrize("text", ["{}", "", "hello"])
def test_file_that_is_no_list_is_refused(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a JSON list of conversations"):
        read(path)


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.jsonl", "\n")])
def test_empty_dataset_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match="holds no conversation"):
        read(path)


def test_missing_file_is_named_with_the_embedded_datasets(tmp_path):
    with pytest.raises(DataError, match=r"no file .*none.json \(embedded datasets: sharegpt\)"):
        read(tmp_path / "none.json")
