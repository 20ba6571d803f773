import json
import os

import pytest
from filelock import FileLock

from eagle.decoding.decoder import Decoder
from eagle.errors import DataError
from eagle.plugin.sampling import SamplingParams
from eagle.target.causal_lm import Target
from eagle.train.data import regeneration as module
from eagle.train.data.regeneration import regenerate
from eagle.train.data.sources import Conversation, Passage, read_sources
from eagle.train.data.talks import talks_of
from eagle.train.spec.config import SourceSpec
from tests.train.words import word_tokenizer, write_talks

GREEDY = SamplingParams(max_new_tokens=12)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def decoder(pair, spec):
    target = Target(pair[0].model, word_tokenizer(), "tiny")
    return Decoder.from_spec(spec(runtime={"max_batch": 3}), target=target)


@pytest.fixture
def file(tmp_path):
    write_talks(tmp_path / "talk.jsonl", 12, turns=3, longest=6)
    return tmp_path / "talk.jsonl"


def items(file):
    return list(read_sources([SourceSpec(path=str(file))]))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def small_waves(monkeypatch):
    monkeypatch.setattr(module, "_WAVE", 1)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_every_answer_is_what_the_target_says_to_the_conversation_before_it(
    decoder, file, tmp_path, params
):
    talks = talks_of(items(file), "all")
    report = regenerate(decoder, talks, tmp_path / "out.jsonl", params)
    found = lines(tmp_path / "out.jsonl")
    assert [line["id"] for line in found] == [f"talk{n}_{n}" for n in range(12)]
    asked = [
        [turn["content"] for turn in json.loads(line)["messages"] if turn["role"] == "user"]
        for line in file.read_text().splitlines()
    ]
    for line, questions in zip(found, asked, strict=True):
        messages = line["messages"]
        assert [turn["role"] for turn in messages] == ["user", "assistant"] * len(questions)
        assert [turn["content"] for turn in messages[::2]] == questions
        if params.temperature == 0:
            for turn in range(1, len(messages), 2):
                alone = decoder.generate(messages[:turn], params)
                assert messages[turn]["content"] == alone.text
                assert line["finish"][turn // 2] == alone.finish_reason
    assert report.answers == report.total == sum(map(len, asked))
    assert report.tokens > report.answers


def test_a_conversation_goes_on_while_others_have_not_begun(decoder, file, tmp_path, monkeypatch):
    asked, intake = [], Decoder.intake

    def noted(self, prompts, *rest, **more):
        asked.extend(map(len, prompts))
        return intake(self, prompts, *rest, **more)

    monkeypatch.setattr(Decoder, "intake", noted)
    talks = talks_of(items(file), "all")
    answered, begun = [], []

    def look(report):
        answered.append(report.answers)
        begun.append(sum(bool(talk.answers) for talk in talks))

    regenerate(decoder, talks, tmp_path / "out.jsonl", GREEDY, look)
    assert len(asked) == answered[-1] == sum(len(talk.questions) for talk in talks)
    # When the last conversation got its first answer, others had got their second long before.
    assert answered[begun.index(len(talks))] > len(talks)


def test_training_reads_what_comes_out(decoder, file, tmp_path):
    regenerate(decoder, talks_of(items(file), "all"), tmp_path / "out.jsonl", GREEDY)
    before, after = items(file), items(tmp_path / "out.jsonl")
    assert [one.group for one in after] == [one.group for one in before]
    assert [len(one.messages) for one in after] == [len(one.messages) for one in before]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_process_that_is_killed_anywhere_loses_and_doubles_nothing(
    decoder, file, tmp_path, params
):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    total = regenerate(decoder, talks_of(items(file), "all"), whole, params).total
    answered, kills = 0, 0

    def kill(report):
        if report.tokens and report.answers == answered + 1 + kills % 3:
            raise Killed

    while True:
        try:
            report = regenerate(decoder, talks_of(items(file), "all"), out, params, kill)
            break
        except Killed:
            kills += 1
        # The line that was being written when the process ended is cut off.
        for path in (out, tmp_path / "out.jsonl.progress"):
            with path.open("ab") as raw:
                raw.write(b'{"number": 3, "tu')
        answers = {(line["number"], line["turn"]) for line in _answers(out)}
        assert len(answers) == len(_answers(out)) > answered
        answered = len(answers)
        assert whole.read_text().startswith(out.read_text().rpartition("\n")[0])
    assert kills > 3
    assert out.read_text() == whole.read_text()
    assert report.answers == total


def _answers(out):
    content = out.with_name("out.jsonl.progress").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in content.splitlines()[1:]]


def test_a_file_that_is_finished_is_left_as_it_is(decoder, file, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    regenerate(decoder, talks_of(items(file), "all"), out, GREEDY)
    before = out.read_text()
    monkeypatch.setattr(Decoder, "intake", lambda *_: pytest.fail("asked again"))
    report = regenerate(decoder, talks_of(items(file), "all"), out, GREEDY)
    assert (report.answers, report.tokens) == (report.total, 0)
    assert out.read_text() == before


@pytest.mark.parametrize(
    ("start", "params", "named"),
    [
        (0, GREEDY.model_copy(update={"max_new_tokens": 9}), "sampling"),
        (0, SAMPLED, "sampling"),
        (1, GREEDY, "questions"),
    ],
)
def test_a_file_that_was_begun_with_other_settings_is_not_gone_on_with(
    decoder, file, tmp_path, start, params, named
):
    out = tmp_path / "out.jsonl"
    regenerate(decoder, talks_of(items(file), "all")[:1], out, GREEDY)
    before = out.read_text()
    talks = talks_of(items(file)[start:], "all")[:1]
    with pytest.raises(DataError, match=f"was begun with another {named}; go on with the same"):
        regenerate(decoder, talks, out, params)
    assert out.read_text() == before


def test_another_target_does_not_go_on(decoder, file, tmp_path, spec, pair):
    from eagle.testing import tiny_target

    out = tmp_path / "out.jsonl"
    talks = talks_of(items(file), "first")[:1]
    regenerate(decoder, talks, out, GREEDY)
    other = Target(tiny_target().model, word_tokenizer(), "tiny")
    plain = Decoder.from_spec(spec(head="none", tree="none"), target=other)
    with pytest.raises(DataError, match="was begun with another target"):
        regenerate(plain, talks_of(items(file), "first")[:1], out, GREEDY)


def test_decoding_without_a_head_goes_on_with_what_a_head_began(decoder, file, tmp_path, spec):
    out = tmp_path / "out.jsonl"
    regenerate(decoder, talks_of(items(file), "first"), out, GREEDY)
    plain = Decoder.from_spec(spec(head="none", tree="none"), target=decoder.target)
    with_head = out.read_text()
    assert regenerate(plain, talks_of(items(file), "first"), out, GREEDY).tokens == 0
    regenerate(plain, talks_of(items(file), "first"), tmp_path / "plain.jsonl", GREEDY)
    assert (tmp_path / "plain.jsonl").read_text() == with_head


def test_a_file_that_was_not_begun_here_is_not_touched(decoder, file, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(DataError, match="exists, and was not begun here"):
        regenerate(decoder, talks_of(items(file), "first"), out, GREEDY)
    (tmp_path / "out.jsonl.progress").write_text("3\n")
    with pytest.raises(DataError, match=r"is not of `eagle data regenerate`"):
        regenerate(decoder, talks_of(items(file), "first"), out, GREEDY)
    assert out.read_text() == "mine\n"


@pytest.mark.parametrize("begun", [b"", b'{"target": "cut o'])
def test_a_file_that_came_where_nothing_was_begun_is_not_cut(decoder, file, tmp_path, begun):
    out = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.progress").write_bytes(begun)  # killed as it began
    out.write_text('{"mine": 1}\n{"mine": 2}')
    with pytest.raises(DataError, match="was not begun here"):
        regenerate(decoder, talks_of(items(file), "all"), out, GREEDY)
    assert out.read_text() == '{"mine": 1}\n{"mine": 2}'


def test_a_file_of_other_settings_keeps_a_last_line_without_an_end(decoder, file, tmp_path):
    out, talks = tmp_path / "out.jsonl", talks_of(items(file)[:2], "first")
    regenerate(decoder, talks, out, GREEDY)
    out.write_text(out.read_text().rstrip("\n"))  # as an editor leaves it
    before = out.read_text()
    with pytest.raises(DataError, match="begun with another sampling"):
        regenerate(decoder, talks_of(items(file)[:2], "first"), out, SAMPLED)
    assert out.read_text() == before


def test_what_is_no_plain_file_is_refused_and_nothing_is_left_beside_it(decoder, file, tmp_path):
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub" / "pipe")
    with pytest.raises(DataError, match="is no plain file"):
        regenerate(decoder, talks_of(items(file), "all"), tmp_path / "sub" / "pipe", GREEDY)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["pipe"]


def test_two_processes_do_not_write_one_file(decoder, file, tmp_path):
    with (
        FileLock(tmp_path / ".out.jsonl.lock"),
        pytest.raises(DataError, match="another process is writing"),
    ):
        regenerate(decoder, talks_of(items(file), "first"), tmp_path / "out.jsonl", GREEDY)


def test_a_full_disk_says_so_and_keeps_what_was_answered(decoder, file, tmp_path, monkeypatch):
    out, add, added = tmp_path / "out.jsonl", module.Ledger.add, []

    def full(self, line):
        added.append(line)
        if len(added) == 5:
            raise OSError(28, "No space left on device")
        add(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(module.Ledger, "add", full)
        with pytest.raises(DataError, match=r"No space left.*run the same command again"):
            regenerate(decoder, talks_of(items(file), "all"), out, GREEDY)
    report = regenerate(decoder, talks_of(items(file), "all"), out, GREEDY)
    assert report.answers == report.total
    assert len(lines(out)) == 12


def test_a_conversation_ends_where_no_answer_fits(decoder, file, tmp_path, spec):
    small = Decoder.from_spec(
        spec(runtime={"max_batch": 3, "max_length": 40}), target=decoder.target
    )
    talks = talks_of(items(file), "all")
    report = regenerate(small, talks, tmp_path / "out.jsonl", GREEDY)
    assert report.cut == sum(len(talk.answers) < len(talk.questions) for talk in talks) > 0
    assert report.answers == report.total == sum(len(talk.answers) for talk in talks)
    assert [len(line["finish"]) for line in lines(tmp_path / "out.jsonl")] == [
        len(talk.answers) for talk in talks if talk.answers
    ]


def test_what_the_template_refuses_is_counted_and_left_out(decoder, tmp_path):
    talks = talks_of(
        [
            Conversation("a", (("system", "w9"), ("user", "w7"))),
            Conversation("b", (("user", "w7"),)),
        ],
        "all",
    )
    report = regenerate(decoder, talks, tmp_path / "out.jsonl", GREEDY)
    assert (report.refused, report.answers, report.total) == (1, 1, 1)
    assert [line["id"] for line in lines(tmp_path / "out.jsonl")] == ["b_1"]


def test_questions_are_all_or_the_first_and_the_old_answers_are_gone():
    said = (("system", "s"), ("user", "a"), ("assistant", "x"), ("user", "b"), ("user", "c"))
    (every,) = talks_of([Conversation("g", said), Passage("t", "text")], "all")
    (first,) = talks_of([Conversation("g", said)], "first")
    assert (every.system, every.questions, every.answers) == (("s",), ("a", "b", "c"), [])
    assert first.questions == ("a",)
    assert every.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
    ]


def test_a_dataset_without_a_question_is_refused():
    with pytest.raises(DataError, match="no conversation of the dataset has a question"):
        talks_of([Passage("a", "text"), Conversation("b", (("assistant", "x"),))], "all")
