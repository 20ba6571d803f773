"""``eagle chat``: turns, interruptions, colours, and a conversation that grows too long."""

from __future__ import annotations

import io
import re
import signal

import pytest
from rich.console import Console

from eagle import Decoder
from eagle.cli import console


@pytest.fixture
def chat(eagle, folders, monkeypatch):
    """Run the command on the tiny pair with lines of input."""

    def run(*turns, options=(), count=8):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(turn + "\n" for turn in turns)))
        return eagle("chat", *folders.options("--max-new-tokens", str(count)), *options)

    return run


@pytest.fixture
def asked(monkeypatch):
    """Collect the conversations that the decoder is asked to continue."""
    seen = []
    stream = Decoder.stream

    def watched(self, prompts, *arguments, **options):
        seen.append([message["content"].split() for message in prompts])
        return stream(self, prompts, *arguments, **options)

    monkeypatch.setattr(Decoder, "stream", watched)
    return seen


def test_each_turn_is_answered_with_the_ones_before_in_mind(chat, asked):
    ran = chat("w5 w6", "w7")
    assert ran.status == 0
    first, second = ran.out.splitlines()
    assert len(first.split()) == len(second.split()) == 8
    assert asked == [[["w5", "w6"]], [["w5", "w6"], first.split(), ["w7"]]]
    assert len(re.findall(r"^8 tokens · .* · tau ", ran.err, re.M)) == 2
    assert "accepted draft tokens" in ran.err
    assert "bonus tokens" in ran.err


def test_empty_lines_are_no_turns(chat, asked):
    assert chat("", "w5", "  ").status == 0
    assert len(asked) == 1


def test_exit_ends_and_reset_forgets(chat, asked):
    ran = chat("w5", "/reset", "w7", "/exit", "w9")
    assert asked == [[["w5"]], [["w7"]]]
    assert "a new conversation begins" in ran.err


def test_interrupting_stops_the_answer_and_keeps_what_there_is(chat, asked, monkeypatch):
    stream = Decoder.stream

    def interrupted(self, prompts, *arguments, **options):
        for number, event in enumerate(stream(self, prompts, *arguments, **options)):
            if len(asked) == 1 and number == 1:
                signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(Decoder, "stream", interrupted)
    before = signal.getsignal(signal.SIGINT)
    ran = chat("w5 w6", "w7", count=40)
    first, second = ran.out.splitlines()
    assert ran.status == 0
    assert 2 <= len(first.split()) < 40 == len(second.split())
    assert f"stopped after {len(first.split())} tokens" in ran.err
    assert asked[1][1] == first.split()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_oldest_turns_are_forgotten_when_the_conversation_outgrows_the_decoder(chat, asked):
    ran = chat("w5 w6 w7", "w8", "w9", options=("--set", "runtime.max_length=20"))
    assert ran.status == 0
    assert "the oldest turn was forgotten: this decoder holds 20 tokens" in ran.err
    assert asked[2][0] == ["w8"]


def test_a_turn_that_is_too_long_by_itself_is_refused(chat):
    ran = chat(" ".join(["w5"] * 30), options=("--set", "runtime.max_length=20"))
    assert ran.status == 2
    assert "this decoder holds 20" in ran.err


def test_a_target_without_a_chat_template_is_refused(chat, folders, tmp_path):
    from tests.cli.conftest import word_tokenizer

    for file in folders.target.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    ran = chat("w5", options=("--target", str(tmp_path)))
    assert ran.status == 2
    assert "has no chat template" in ran.err


def test_drafted_and_bonus_tokens_differ_in_colour_on_a_terminal(chat, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=screen, force_terminal=True, highlight=False))
    chat("w5 w6 w7", count=20)
    shown = screen.getvalue()
    cyan, yellow = re.findall(r"\x1b\[36m *w\d+", shown), re.findall(r"\x1b\[33m *w\d+", shown)
    assert len(cyan) + len(yellow) == 20
    assert len(cyan) > len(yellow) > 0


def test_every_answer_has_chance_of_its_own_and_a_seed_repeats_them(chat):
    def said(*options):
        ran = chat("w5", "/reset", "w5", options=("--temperature", "1.5", *options), count=20)
        return ran.out.splitlines()

    first = said("--seed", "3")
    assert first == said("--seed", "3")
    assert first[0] != first[1], "the same question, asked twice"
    assert said() != said()


def test_the_chat_template_gets_variables(chat, asked):
    ran = chat("w5", options=("--template", "loop=1"))
    assert (ran.status, "reads no 'loop'" in " ".join(ran.err.split())) == (2, True)
    ran = chat("w5", options=("--template", "message=w9"))
    assert ran.status == 0


def test_input_that_is_no_text_is_refused_after_what_comes_before_is_answered(
    eagle, folders, monkeypatch, asked
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"w5\nw6 \xff\nw7\n"), "utf-8"))
    ran = eagle("chat", *folders.options("--max-new-tokens", "4"))
    assert ran.status == 2
    assert "line 2 of standard input is not UTF-8 text (byte 3)" in ran.err
    assert len(asked) == 1
