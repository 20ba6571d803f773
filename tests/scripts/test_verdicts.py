"""A figure is worse where it changed by more than its spread, and only there."""

import pytest

from check_gpu.figures import KINDS, Record
from check_gpu.verdicts import against_record, beside, incomparable

TIMES = [1.00, 1.01, 0.99, 1.00, 1.02, 0.98]
NAME = "135m/eagle-reference/b1/t0/"


def record(kind="cycle_ms", samples=TIMES, factor=1.0, **changes):
    figures = {NAME + kind: [factor * sample for sample in samples]} if samples else {}
    return Record(hardware="H100", work="abc", figures=figures, **changes)


def word(now, then, compare=against_record):
    (verdict,) = compare(now, then)
    return verdict.word


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("compare", [against_record, beside])
def test_every_kind_is_worse_in_one_direction_and_better_in_the_other(kind, compare):
    up, down = ("worse", "better") if KINDS[kind].less else ("better", "worse")
    assert word(record(kind, factor=1.5), record(kind), compare) == up
    assert word(record(kind, factor=0.6), record(kind), compare) == down
    assert word(record(kind), record(kind), compare) == "same"


def test_a_change_within_the_spread_of_the_two_is_none():
    noisy = [0.8, 0.9, 1.0, 1.1, 1.2]
    assert word(record(samples=noisy, factor=1.15), record(samples=noisy)) == "same"
    assert word(record(samples=noisy, factor=1.25), record(samples=noisy)) == "worse"


def test_a_change_that_machines_of_one_model_show_is_none_however_still_the_samples_are():
    still = [1.0] * 6
    floor = KINDS["cycle_ms"].floor
    assert word(record(samples=still, factor=1 + 0.9 * floor), record(samples=still)) == "same"
    assert word(record(samples=still, factor=1 + 1.1 * floor), record(samples=still)) == "worse"


def test_turns_in_one_run_show_what_two_runs_cannot():
    change = 1 + 2 * KINDS["cycle_ms"].side
    still = [1.0, 1.0, 1.0001, 1.0, 1.0, 1.0]
    now, then = record(samples=still, factor=change), record(samples=still)
    assert word(now, then) == "same"
    assert word(now, then, beside) == "worse"


def test_a_machine_that_slows_down_slows_both_sides():
    drifting = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    assert word(record(samples=drifting, factor=1.001), record(samples=drifting), beside) == "same"
    assert word(record(samples=drifting, factor=1.05), record(samples=drifting), beside) == "worse"


def test_tau_is_compared_prompt_by_prompt():
    prompts = [2.0, 3.1, 4.6, 2.4, 3.9, 2.8]
    assert word(record("tau", prompts, 0.95), record("tau", prompts)) == "worse"
    other = [*prompts[1:], prompts[0]]
    assert word(record("tau", other, 0.95), record("tau", prompts)) == "same"


def test_a_single_sample_is_not_believed_a_small_change():
    assert word(record("pass_ms", [1.04]), record("pass_ms", [1.0])) == "same"
    assert word(record("pass_ms", [1.06]), record("pass_ms", [1.0])) == "worse"
    assert word(record("pass_ms", [1.04]), record("pass_ms", [1.0]), beside) == "same"


@pytest.mark.parametrize("compare", [against_record, beside])
def test_an_interrupted_run_is_compared_by_what_it_has(compare):
    assert word(record("tau", TIMES[:3]), record("tau"), compare) == "same"
    assert word(record("tau", TIMES[:3], 0.8), record("tau"), compare) == "worse"


@pytest.mark.parametrize("compare", [against_record, beside])
def test_figures_that_one_of_the_two_lacks_are_named_and_not_judged(compare):
    (new,), (gone,) = compare(record(), record(samples=[])), compare(record(samples=[]), record())
    assert (new.word, new.then, new.change) == ("new", None, None)
    assert (gone.word, gone.now, gone.then) == ("gone", None, 1.0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [(Record(hardware="H200", work="abc"), "H200"), (Record(hardware="H100", work="b"), "prompts")],
)
def test_nothing_is_judged_across_machines_or_work(other, reason):
    other.figures = record(factor=0.5).figures
    assert reason in incomparable(record(), other)
    assert word(record(), other) == "apart"


def test_names_are_ordered_by_their_numbers():
    figures = {f"135m/passes/b1/n{nodes}/pass_ms": [1.0] for nodes in (61, 8, 26, 1)}
    found = [verdict.name for verdict in against_record(Record(figures=figures), Record())]
    assert [name.split("/")[3] for name in found] == ["n1", "n8", "n26", "n61"]
