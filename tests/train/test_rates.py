"""How often a head is right, counted from ranks and measured on the tiny pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle.decoding.resolving import resolve_for
from eagle.errors import DataError, PluginError
from eagle.plugin.registry import default_registry
from eagle.spec import DecoderSpec
from eagle.spec.schema import TargetSpec
from eagle.testing import tiny_pair
from eagle.train.evaluation.rates import embedded_prompts, measure_rates, rank_rates
from eagle.train.evaluation.replay import Replay

PROMPTS = [[4, 6, 8], [10, 11, 12, 13], [40, 43]]


def replay(*levels):
    return Replay(np.array(levels, dtype=np.int64))


def test_ranks_are_counted_at_every_position_that_has_a_true_token():
    # Of an answer of 5 tokens, 4 are drafted from a root in it, and 3 on the second level.
    found = rank_rates([replay([0, 0, 1, 0, 9], [0, 2, 1, 9, 9])], "by hand", ranks=3)
    assert found.levels == ((0.75, 0.25, 0.0), (0.33333, 0.33333, 0.33333))
    assert (found.positions, found.source) == (4, "by hand")


def test_ranks_beyond_those_that_are_told_apart_count_for_none():
    found = rank_rates([replay([0, 7, 40, 2, 9])], "by hand", ranks=3)
    assert found.levels == ((0.25, 0.125, 0.125),), "of ranks 1 and 2 chance decides"


def test_a_level_that_no_answer_reaches_is_left_out():
    assert len(rank_rates([replay([0, 9], [9, 9]), replay([0], [9])], "short").levels) == 1


@pytest.mark.parametrize("replays", [[], [replay([5])], [replay([5], [5])]])
def test_answers_of_one_token_tell_nothing(replays):
    with pytest.raises(DataError, match="no answer of two tokens"):
        rank_rates(replays, "short")


@given(
    st.lists(
        st.lists(st.integers(0, 20), min_size=2, max_size=12).map(
            lambda ranks: replay(ranks, ranks[::-1])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_ranks_give_possible_rates_that_keep_their_number(replays):
    found = rank_rates(replays, "chance")
    for level, rates in enumerate(found.levels):
        seen = [r for one in replays for r in one.ranks[level, : one.ranks.shape[1] - 1 - level]]
        assert sum(rates) == pytest.approx(sum(r < 16 for r in seen) / len(seen), abs=1e-3)
        assert list(rates) == sorted(rates, reverse=True)
        assert len(rates) == 16


@pytest.fixture(scope="module")
def loaded():
    """The pair's target, and its components with the head loaded."""
    target, folder = tiny_pair()
    spec = DecoderSpec(head={"name": "eagle", "weights": str(folder)})
    resolved = resolve_for(spec, default_registry(), target)
    resolved.head.load(target, resolved.attention)
    return target, resolved


def measure(loaded, prompts=PROMPTS, head=None, **options):
    target, resolved = loaded
    return measure_rates(
        head or resolved.head, target, resolved.features, prompts, "tiny",
        max_new_tokens=12, **options,
    )  # fmt: skip


def test_the_pair_is_measured(loaded):
    found = measure(loaded, levels=3)
    assert len(found.levels) == 3
    assert found.positions <= 11 * len(PROMPTS)
    assert found.source == "tiny: 3 prompts"
    assert found.levels[0][0] > 0.5, "it was trained for this target"
    assert measure(loaded, levels=3, batch=1) == found


def test_prompts_that_are_too_long_are_counted_and_left_out(loaded):
    said = []
    found = measure(loaded, [*PROMPTS, [5] * 9], levels=2, max_prompt=8, say=said.append)
    assert found == measure(loaded, levels=2)
    assert said[0] == "prompts of over 8 tokens left out: 1"
    with pytest.raises(DataError, match="no prompt of at most 8 tokens"):
        measure(loaded, [[5] * 9], max_prompt=8)
    with pytest.raises(DataError, match=r"no prompt of at most 500 tokens"):
        measure(loaded, [[5] * 501])


def test_a_head_that_cannot_be_replayed_is_named(loaded):
    with pytest.raises(PluginError, match="a object has no train_states"):
        measure(loaded, head=object())


def test_embedded_prompts_are_beginnings_of_what_is_held_out(make_corpus, monkeypatch):
    corpus, asked = make_corpus(600), []

    def made(spec, say):
        asked.append(spec)
        return corpus

    monkeypatch.setattr("eagle.train.evaluation.rates.make_corpus", made)
    target = TargetSpec(model="some/model")
    prompts = embedded_prompts(target, 2, lambda what: None)
    (spec,) = asked
    assert spec.target == target
    assert spec.data.limit == 400, "twice what is needed, of which a hundredth is held out"
    heldout = corpus.split(spec.data.heldout, spec.data.seed)[1]
    assert len(heldout) > 2
    assert prompts == [corpus.text(number)[0][:4].tolist() for number in heldout[:2]]
