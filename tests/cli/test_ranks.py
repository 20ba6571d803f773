"""``eagle bench ranks``: what a head's figures are taken from, and where they go."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from eagle.plugin.budget import RankRates
from eagle.train.evaluation.answers import answer


@pytest.fixture
def head(folders, tmp_path):
    """A copy of the tiny head."""
    shutil.copytree(folders.head, tmp_path / "head")
    return tmp_path / "head"


@pytest.fixture
def ranks(eagle, folders, head, tmp_path):
    """Run ``eagle bench ranks`` on the tiny pair and three prompts."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w5 w6 w7\nw10 w12 w14 w16\nw40 w43\n")

    def run(*more, given=("--prompts", str(prompts))):
        settings = ("--set", "target.dtype=float32", "--set", f"head.weights={head}")
        return eagle(
            "bench", "ranks", "eagle", "--target", str(folders.target), *settings,
            "--max-new-tokens", "12", *given, *more,
        )  # fmt: skip

    return run


def test_the_figures_are_shown_and_kept_beside_the_weights(ranks, head):
    ran = ranks()
    assert ran.status == 0
    kept = RankRates.read(head)
    assert kept is not None
    assert kept.source == "prompts.txt: 3 prompts"
    header, *rows = ran.out.splitlines()
    assert header.split()[:3] == ["level", "rank", "0"]
    assert [row.split()[0] for row in rows] == [str(n + 1) for n in range(len(kept.levels))]
    assert float(rows[0].split()[1]) == pytest.approx(kept.levels[0][0], abs=1e-3)
    assert all(sum(map(float, row.split()[1:])) == pytest.approx(1, abs=5e-3) for row in rows)
    assert f"{kept.positions:,} positions; kept in {head / 'acceptance.json'}" in ran.err


def test_json_is_the_file_and_its_place(ranks, head):
    ran = ranks("--json", "--limit", "2")
    shown = json.loads(ran.out)
    assert shown.pop("file") == str(head / "acceptance.json")
    assert shown == json.loads((head / "acceptance.json").read_text())
    assert shown["source"] == "prompts.txt: 2 prompts"


def test_without_prompts_they_are_those_that_are_held_out(ranks, head, monkeypatch):
    asked = []

    def embedded(target, limit, say):
        asked.append((target.dtype, limit))
        return [[5, 6, 7], [40, 43]]

    monkeypatch.setattr("eagle.train.evaluation.embedded_prompts", embedded)
    assert ranks("--limit", "2", given=()).status == 0
    assert asked == [("float32", 2)]
    assert RankRates.read(head).source == "sharegpt, held out: 2 prompts"


def never(*arguments):
    raise AssertionError("something was loaded for nothing")


def test_a_head_without_files_is_refused_before_anything_is_loaded(ranks, monkeypatch):
    monkeypatch.setattr("eagle.target.load_target", never)
    ran = ranks("--set", "head=none", "--set", "tree=none")
    assert ran.status == 2
    assert "the draft head 'none' has no files" in ran.err


def test_a_folder_that_may_not_be_written_to_is_refused_first(ranks, head, monkeypatch):
    monkeypatch.setattr("eagle.target.load_target", never)
    monkeypatch.setattr(os, "access", lambda path, mode: path != head)
    ran = ranks()
    assert ran.status == 2
    assert f"{head} may not be written to" in ran.err
    assert "give --no-keep, or copy the folder and give the copy as head.weights" in ran.err


def test_a_file_without_prompts_is_refused(ranks, tmp_path, head):
    (tmp_path / "prompts.txt").write_text("\n")
    ran = ranks()
    assert ran.status == 2
    assert "prompts.txt holds no prompt" in ran.err
    assert not (head / "acceptance.json").exists()


TREES = ("{name: chain, depth: 2}", "{name: static, branching: [3, 2]}")


def test_trees_are_simulated_by_kind_of_text_without_a_file_being_touched(
    ranks, head, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: path != head)
    before = sorted(head.iterdir())
    (tmp_path / "other.txt").write_text("w7 w9\n")
    given = ("--prompts", f"some={tmp_path / 'prompts.txt'}", "--prompts", f"{tmp_path}/other.txt")
    trees = [word for tree in TREES for word in ("--tree", tree)]
    picture = tmp_path / "a.png"
    ran = ranks("--no-keep", "--json", "--plot", str(picture), *trees, given=given)
    assert ran.status == 0, ran.err
    taus = json.loads(ran.out)["simulation"]["tau"]
    chain, static = taus["chain, depth 2"], taus["static, branching [3, 2]"]
    assert set(chain) == set(static) == {"some", "other"}
    assert all(1 <= chain[name] <= static[name] <= 3 for name in chain)
    assert chain["some"] > 1.5, "it was trained for this target"
    assert sorted(head.iterdir()) == before
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_of_simulated_trees_has_a_column_for_each_kind_of_text(ranks):
    ran = ranks("--tree", TREES[0])
    header, row = ran.out.splitlines()[-2:]
    assert header.split() == ["tau", "of", "prompts"]
    assert row.split()[:3] == ["chain,", "depth", "2"]


def test_all_turns_are_asked_each_behind_the_answers_before(ranks, pair, tmp_path, monkeypatch):
    talk, kept = tmp_path / "talk.jsonl", tmp_path / "answers.json"
    turns = ["w5 w6", "w20 w22", "w40", "w9 w10"]
    talk.write_text(json.dumps({"turns": turns}) + "\n")
    given = ("--prompts", str(talk), "--all-turns", "--answers", str(kept), "--tree", TREES[0])
    ran = ranks("--no-keep", "--json", "--max-prompt", "45", given=given)
    assert ran.status == 0, ran.err
    (one,) = json.loads(kept.read_text())["sets"].values()
    assert one["source"] == f"talk.jsonl: {len(one['answers'])} turns of 1 conversations"
    assert [prompt[-1] for prompt, _ in one["answers"]] == [6, 22, 40, 10][: len(one["answers"])]
    assert 2 <= len(one["answers"]) <= 4
    with pair[0].stock():
        for number, (prompt, said) in enumerate(one["answers"]):
            assert list(answer(pair[0], [prompt], 12, 1)[0].answer) == said
            if number:
                before = one["answers"][number - 1]
                assert prompt[: len(before[0]) + len(before[1])] == [*before[0], *before[1]]
    monkeypatch.setattr("eagle.train.evaluation.converse", never)
    again = ranks("--no-keep", "--json", "--max-prompt", "45", given=given)
    assert json.loads(again.out) == json.loads(ran.out)
    other = ranks("--no-keep", "--max-prompt", "44", given=given)
    assert other.status == 2
    assert "holds answers to something else: --max-prompt 45 and not 44" in other.err
    kept.write_text("{}")
    assert "holds no answers that `eagle bench ranks` kept" in ranks(given=given).err


def test_the_parts_of_the_text_are_as_many_as_are_asked_for(ranks, tmp_path):
    (tmp_path / "prompts.txt").write_text("w5 w6 w7\n" * 8)
    given = ("--tree", TREES[0], "--max-new-tokens", "24", "--json", "--no-keep")
    for bins in (1, 3):
        found = json.loads(ranks(*given, "--bins", str(bins)).out)["simulation"]["positions"]
        assert len(found["prompts"]) == bins


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ("[1, 2]", "should be a tree as in a spec"),
        ("{name: dynamic}", "takes its shape from the draft distributions"),
        ("{name: best-first, least: 0.1}", "takes its shape from the draft distributions"),
        ("{name: nothing}", "nothing"),
    ],
)
def test_a_tree_that_cannot_be_simulated_is_refused_first(ranks, monkeypatch, tree, says):
    monkeypatch.setattr("eagle.target.load_target", never)
    ran = ranks("--tree", tree)
    assert ran.status == 2
    assert says in ran.err
