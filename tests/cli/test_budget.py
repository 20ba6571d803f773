"""``eagle spec show`` and ``check`` on a tree whose size is chosen for the machine."""

from __future__ import annotations

import shutil

import pytest
import yaml

from eagle.plugin.budget import Costs, Curve, RankRates
from eagle.spec import load_spec

COSTS = Costs(
    verify=Curve.of([(1, 10.0), (61, 20.0)]),
    begin=0.5,
    level=Curve.of([(1, 0.5), (10, 1.0)]),
    rest=0.25,
    context=256,
)
RATES = RankRates(levels=((0.75, 0.2), (0.5, 0.2)), positions=1234, source="two prompts")


@pytest.fixture
def head(folders, tmp_path):
    """A copy of the tiny head that was measured."""
    folder = tmp_path / "head"
    shutil.copytree(folders.head, folder)
    RATES.write(folder)
    return folder


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Spare the measuring, in an empty cache; the list has an entry for each time."""
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    times = []

    def measure(resolved, target, tell):
        times.append(resolved.head.folder)
        tell("timing this and that")
        return COSTS

    monkeypatch.setattr("eagle.sizing.choosing.measure_costs", measure)
    return times


@pytest.fixture
def show(eagle, folders, head, measured):
    """Run ``eagle spec show`` for the tiny pair."""

    def run(*more, name="static", weights=head, command="show"):
        settings = (
            f"target.model={folders.target}", "target.dtype=float32", f"head.weights={weights}",
            f"tree={{name: {name}, size: auto}}",
        )  # fmt: skip
        chosen = [word for setting in settings for word in ("--set", setting)]
        return eagle("spec", command, "eagle", *chosen, *more)

    return run


def test_what_was_not_measured_is_said_and_not_measured(show, measured):
    ran = show()
    assert ran.status == 0
    assert yaml.safe_load(ran.out)["tree"] == {"name": "static", "size": "auto"}
    assert "This machine has not been measured" in ran.err
    assert "--measure" in ran.err
    assert measured == []


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_measuring_explains_the_choice_and_keeps_it(show, measured, head, name):
    ran = show("--measure", name=name)
    assert ran.status == 0
    assert yaml.safe_load(ran.out)["tree"]["size"] == "auto", "stdout has the spec alone"
    assert measured == [head]
    assert "  timing this and that\n" in ran.err
    lines = ran.err.splitlines()
    (chosen,) = [line for line in lines if line.endswith("chosen")]
    columns = next(line for line in lines if line.startswith("nodes"))
    assert columns.split() == [
        "nodes",
        "levels",
        "ms",
        "a",
        "cycle",
        "verify",
        "tokens",
        "tokens/s",
    ]
    assert "at 256 tokens of text: verification by nodes 1: 10.00, 61: 20.00;" in ran.err
    assert "each further one by nodes extended 1: 0.50, 10: 1.00" in ran.err
    assert "acceptance: two prompts, 1,234 positions, temperature 0" in ran.err

    again = show(name=name)
    timed = lines.index("  timing this and that")
    assert again.err.splitlines() == lines[:timed] + lines[timed + 1 :], (
        "nothing is measured, all the rest is the same"
    )
    assert len(measured) == 1
    nodes, levels, milliseconds, verify, tokens, rate = map(float, chosen.split()[:6])
    assert verify == pytest.approx(COSTS.verify(int(nodes)), abs=0.01)
    assert rate == pytest.approx(1e3 * tokens / milliseconds, abs=1)
    assert levels <= 2
    show("--measure", name=name)
    assert len(measured) == 2, "asked for, it is measured again"


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_what_is_shown_as_a_spec_is_one(show, eagle, tmp_path, name):
    ran = show("--measure", name=name)
    (line,) = [line for line in ran.err.splitlines() if line.startswith("as a spec says it: ")]
    (tmp_path / "my.yaml").write_text(line.removeprefix("as a spec says it: "))
    assert load_spec(tmp_path / "my.yaml").tree.name == name
    (chosen,) = [line for line in ran.err.splitlines() if line.endswith("chosen")]
    nodes, levels = chosen.split()[:2]
    checked = eagle("spec", "check", str(tmp_path / "my.yaml"), "--set", "target.device=cpu")
    assert f"tree nodes: {nodes}, drafted levels: {levels}," in checked.out


def test_the_decoder_takes_the_tree_that_is_shown(show, eagle, folders, head, measured):
    show("--measure")
    ran = eagle(
        "generate", "w5 w6 w7", "--target", str(folders.target), "--max-new-tokens", "4",
        "--set", "target.dtype=float32", "--set", f"head.weights={head}",
        "--set", "tree={name: static, size: auto}",
    )  # fmt: skip
    assert ran.status == 0
    assert "Measuring" not in ran.err
    assert len(measured) == 1, "a target's configuration tells the same as the target"


def test_a_head_that_was_never_measured_is_named(show, folders, measured):
    ran = show(weights=folders.head)
    assert ran.status == 0
    assert "The draft head has no measured acceptance, so the tree has " in ran.err
    assert "eagle bench ranks" in ran.err
    ran = show("--measure", weights=folders.head)
    assert ran.status == 2
    assert "error: --measure: " in ran.err
    assert "begin with `eagle bench ranks`" in ran.err
    assert measured == []


def test_a_head_without_files_is_not_sent_to_be_measured(eagle, folders, measured):
    words = ("spec", "show", "prompt-lookup", "--set", f"target.model={folders.target}")
    words += ("--set", "tree={name: static, size: auto}")
    ran = eagle(*words)
    assert ran.status == 0
    assert "has no files in which could be kept how often it is right" in ran.err
    assert "Give its size in the spec instead of `size: auto`, or take a head with files" in ran.err
    assert "bench ranks" not in ran.err
    ran = eagle(*words, "--measure")
    assert ran.status == 2
    assert "error: --measure: this draft head has no files" in ran.err
    assert "bench ranks" not in ran.err
    assert measured == []


def test_measuring_for_a_tree_of_a_given_size_is_refused(eagle):
    ran = eagle("spec", "show", "chain", "--measure")
    assert ran.status == 2
    assert "'chain' as configured is none of them; try --set tree.size=auto" in ran.err


def test_a_choice_that_cannot_be_told_is_no_failure(show, head):
    (head / "acceptance.json").write_text("{")
    ran = show()
    assert ran.status == 0
    assert "size: auto" in ran.out
    assert "What this tree's size would be here is not known: " in ran.err
    assert "acceptance.json" in ran.err
    assert show("--measure").status == 2


def test_check_does_not_take_the_usual_size_for_the_chosen_one(show):
    ran = show(command="check")
    assert ran.status == 0
    assert "tree of the size that fits the machine (`eagle spec show` says which)" in ran.out
    assert "tree nodes" not in ran.out
