"""``eagle tree``: what is shown is what the decoder does."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import pytest

PROMPT = "w5 w6 w7 w8"


@pytest.fixture
def tree(eagle, folders):
    def run(*arguments):
        return eagle("tree", *arguments, *folders.options())

    return run


def test_the_accepted_path_and_the_bonus_token_are_what_generate_says(tree, eagle, folders):
    options = (*folders.options("--max-new-tokens", "40"), "--json")
    answer = json.loads(eagle("generate", PROMPT, *options).out)
    given, at = answer["tokens"], 1
    for cycle, size in enumerate(answer["stats"]["accepted_per_cycle"][:3], 1):
        shown = json.loads(tree(PROMPT, "--cycle", str(cycle), "--json").out)
        path = [node["token"] for node in shown["nodes"] if node["accepted"]]
        assert [*path, shown["bonus"]["token"]] == given[at - 1 : at + size]
        assert shown["accepted"] == size - 1
        assert shown["text"].split() == [f"w{token}" for token in given[:at]]
        at += size


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_probabilities_are_those_of_children_given_their_parent(temperature, tree):
    shown = json.loads(
        tree(PROMPT, "--temperature", temperature, "--set", "tree.sampling=top-k", "--json").out
    )
    assert shown["temperature"] == pytest.approx(float(temperature) or 1)
    root, *drafted = shown["nodes"]
    assert root["draft_prob"] is None
    assert len(drafted) == 25
    for parent in {node["parent"] for node in drafted}:
        for key in ("draft_prob", "target_prob"):
            siblings = [node[key] for node in drafted if node["parent"] == parent]
            assert 0 < sum(siblings) <= 1 + 1e-6
    by_rank = [n["draft_prob"] for n in sorted(drafted, key=lambda n: n["rank"]) if n["depth"] == 1]
    assert by_rank == sorted(by_rank, reverse=True), "the tree takes candidates by top-k"


def test_the_terminal_shows_every_node(tree):
    ran = tree(PROMPT)
    assert ran.status == 0
    assert ran.out.count("target 0.") + ran.out.count("target 1.") == 26
    assert "root" in ran.out
    assert ran.out.count("bonus token") == 2
    assert "of 25 candidates accepted" in ran.out


def test_the_svg_is_well_formed_and_self_contained(tree, tmp_path):
    file = tmp_path / "tree.svg"
    assert tree(PROMPT, "--svg", str(file)).status == 0
    text = file.read_text()
    drawing = ElementTree.fromstring(text)
    boxes = [g for g in drawing.iter("{http://www.w3.org/2000/svg}g") if len(g) > 1]
    assert len(boxes) == 27
    assert "href" not in text
    assert "url(" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["tree.svg"]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("not-there/tree.svg", " cannot be written: it is a folder, or its folder is missing"),
        ("", " cannot be written: it is a folder, or its folder is missing"),
        ("x" * 300, ": File name too long"),
    ],
)
def test_an_svg_that_cannot_be_written_is_reported_and_leaves_nothing(
    file, problem, tree, tmp_path
):
    folder = tmp_path / "drawings"
    folder.mkdir()
    ran = tree(PROMPT, "--svg", str(folder / file))
    assert ran.status == 2
    assert ran.err == f"error: {folder / file}{problem}\n"
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_a_dash_reads_the_prompt_from_stdin(tree, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n".encode())))
    assert tree("-", "--json").out == tree(PROMPT, "--json").out


def test_a_lossy_spec_says_so(tree):
    ran = tree(PROMPT, "--set", "acceptance=typical", "--json")
    assert "not lossless" in ran.err
    assert json.loads(ran.out)["lossless"] is False


def test_a_spec_without_drafting_shows_the_bonus_token_alone(tree, folders, eagle):
    ran = eagle("tree", PROMPT, "--spec", "plain", "--target", str(folders.target))
    assert ran.status == 0
    assert "0 of 0 candidates accepted" in ran.out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((" ",), "the prompt is empty"),
        ((PROMPT, "--cycle", "0"), "--cycle"),
        (
            (PROMPT, "--cycle", "2", "--set", "runtime.max_length=6"),
            "the answer ends after 1 cycle",
        ),
        ((PROMPT, "--temperature", "-1"), "--temperature: should be"),
        ((PROMPT, "--spec", "egle"), "Did you mean 'eagle'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(arguments, problem, tree):
    ran = tree(*arguments)
    assert ran.status == 2
    assert problem in ran.err
    assert "Traceback" not in ran.err
