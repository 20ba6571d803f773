"""`eagle compile`: once, kept, told; and mentioned where it would help."""

import pytest

from eagle.cli import console
from eagle.cli.compiling import suggest
from eagle.decoding.decoder import Decoder
from eagle.runtime.aot import AheadPass


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Let compiling leave an empty file behind, and let that be loaded."""

    def make(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    monkeypatch.setattr(AheadPass, "make", make)
    monkeypatch.setattr(AheadPass, "load", lambda self: True)


def test_the_first_time_compiles_and_the_second_finds_it(eagle, folders, cache, quick):
    ran = eagle("compile", "eagle", *folders.options())
    assert ran.status == 0, ran.err
    assert "Compiled in" in ran.err
    (path,) = (cache / "passes").glob("*.pt2")
    again = eagle("compile", "eagle", *folders.options())
    assert again.status == 0
    assert "Already compiled" in again.err
    assert [path] == list((cache / "passes").glob("*.pt2"))


def test_without_a_compiler_it_says_what_is_needed(eagle, folders, cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    ran = eagle("compile", "eagle", *folders.options())
    assert ran.status == 2
    assert "C++ compiler" in ran.err


class Terminal:
    is_terminal = True

    def __init__(self):
        self.said = []

    def print(self, text, **options):
        self.said.append(text)


@pytest.mark.parametrize(
    ("runtime", "compiler", "told"),
    [({}, "g++", 1), ({"compile": False}, "g++", 0), ({}, None, 0)],
)
def test_it_is_mentioned_once_a_week_where_it_would_help(
    cache, pair, spec, monkeypatch, runtime, compiler, told
):
    terminal = Terminal()
    monkeypatch.setattr(console, "err", terminal)
    monkeypatch.setattr("eagle.runtime.compiler", lambda: compiler)
    decoder = Decoder.from_spec(spec(runtime=runtime), target=pair[0])
    suggest(decoder)
    suggest(decoder)
    assert len(terminal.said) == told


def test_it_is_not_mentioned_once_it_was_done(cache, pair, spec, monkeypatch, quick):
    terminal = Terminal()
    monkeypatch.setattr(console, "err", terminal)
    monkeypatch.setattr("eagle.runtime.compiler", lambda: "g++")
    decoder = Decoder.from_spec(spec(), target=pair[0])
    AheadPass(pair[0], decoder.resolved.attention, ()).make()
    suggest(decoder)
    assert terminal.said == []
