from __future__ import annotations

import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import Phase, given, settings

from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.laws import KNOWN_LAWS, Law
from eagle.plugin.sampling import Sampling, probabilities
from eagle.testing.exactness import assert_lossless
from eagle.testing.oracle import (
    EnumeratingDraws,
    ScalarEnumeratingDraws,
    enumerate_draws,
    enumerate_scalar_draws,
)
from eagle.testing.worlds import World, worlds
from eagle_plugins.acceptance.speculative import SpeculativeRule
from eagle_plugins.acceptance.typical import TypicalConfig, TypicalRule
from eagle_plugins.trees.dynamic import DynamicConfig, DynamicTree

# Where a failure is expected, its smallest example is not worth the time.
QUICK = settings(phases=[Phase.generate])


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_speculative_is_lossless_under_every_law(law):
    assert_lossless(SpeculativeRule(), law=law)


def test_every_declared_law_is_proved_when_none_is_named(monkeypatch):
    proved = []
    monkeypatch.setattr(
        "eagle.testing.exactness.check_world", lambda rule, world, law, builder: proved.append(law)
    )

    class Batched(SpeculativeRule):
        scalar = None

    assert_lossless(Batched(), settings=settings(max_examples=3))
    assert set(proved) == set(KNOWN_LAWS)


@pytest.mark.parametrize("sampling", [Law.TOP_K, Law.WITHOUT_REPLACEMENT])
@pytest.mark.parametrize(
    "paths",
    [
        [[0]],
        [[0], [1], [2]],
        [[0], [0, 0], [0, 0, 0]],
        [[0], [1], [0, 0], [1, 0]],
        [[0], [1], [1, 0], [1, 1], [1, 1, 0]],
    ],
    ids=str,
)
def test_static_tree_and_speculative_rule_are_lossless_together(paths, sampling):
    assert_lossless(SpeculativeRule(), builder=StaticTree(Topology.from_paths(paths), sampling))


@pytest.mark.parametrize(("nodes", "depth", "top_k"), [(4, 3, 2), (5, 2, 3)])
def test_dynamic_tree_and_speculative_rule_are_lossless_together(nodes, depth, top_k):
    tree = DynamicTree(DynamicConfig(nodes=nodes, depth=depth, top_k=top_k))
    assert_lossless(SpeculativeRule(), builder=tree)


def test_skipped_ranks_are_lossless_under_top_k():
    tree = StaticTree(Topology.from_paths([[1], [1, 1]]), Law.TOP_K)
    assert_lossless(SpeculativeRule(), builder=tree)


def test_plain_decoding_is_lossless():
    assert_lossless(SpeculativeRule(), builder=StaticTree(Topology(), Law.TOP_K))


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_typical_is_not_lossless_and_says_so(law):
    rule = TypicalRule(TypicalConfig())
    assert not rule.lossless
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(rule, law, settings=QUICK)


def test_a_law_that_the_rule_does_not_declare_is_refused():
    class FixedSetsOnly(SpeculativeRule):
        laws = frozenset({Law.TOP_K})

    assert_lossless(FixedSetsOnly(), settings=settings(max_examples=10))
    with pytest.raises(ValueError, match="does not declare the law iid"):
        assert_lossless(FixedSetsOnly(), "iid")
    with pytest.raises(ValueError, match="does not declare the law without-replacement"):
        assert_lossless(FixedSetsOnly(), builder=StaticTree(Topology.from_branching([2])))


def test_reading_more_uniforms_than_declared_is_an_error():
    class Modest(SpeculativeRule):
        def uniforms(self, shape):
            return 1

    with pytest.raises(AssertionError, match="uniforms per slot"):
        assert_lossless(Modest(), Law.TOP_K, settings=QUICK)


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ModuleNotFoundError, match=r"eagle-decoding\[testing\]"):
        assert_lossless(SpeculativeRule())


@given(worlds(Law.TOP_K))
def test_processors_agree_with_their_naive_twin(world: World):
    own = world.processors
    sampling = Sampling(
        temperature=torch.tensor([own.temperature]),
        top_k=torch.tensor([own.top_k]),
        top_p=torch.tensor([own.top_p]),
        min_p=torch.tensor([own.min_p]),
        greedy=False,
        filtered=True,
    )
    for weights in (*world.targets, *world.drafts):
        logits = torch.tensor([weights], dtype=torch.float64).log() * (own.temperature or 1.0)
        expected = [float(p) for p in own.apply(weights)]
        assert probabilities(logits, sampling)[0].tolist() == pytest.approx(expected, abs=1e-14)


def test_the_oracle_visits_every_outcome_once():
    def run(draws: EnumeratingDraws):
        first = draws.categorical(torch.tensor([[1.0, 0.0, 3.0]]).repeat(draws.lanes, 1))
        # A lane is asked again only where the first outcome was 2.
        again = draws.bernoulli(torch.where(first == 2, 0.25, 0.0))
        pair = draws.categorical(torch.ones(draws.lanes, 2, 2))
        return list(zip(first.tolist(), again.tolist(), pair.tolist(), strict=True))

    seen = {}
    for outcomes, draws in enumerate_draws(run, lanes=3):
        for (first, again, pair), chance in zip(outcomes, draws.probability.tolist(), strict=True):
            key = (first, again, *pair)
            assert key not in seen
            seen[key] = chance
        assert draws.used == 4
    assert len(seen) == 3 * 4
    assert seen[0, False, 0, 1] == 1 / 4 / 4
    assert seen[2, True, 1, 1] == 3 / 4 / 4 / 4
    assert sum(seen.values()) == 1


def test_the_scalar_oracle_visits_every_outcome_once():
    def run(draws: ScalarEnumeratingDraws):
        first = draws.categorical([1, 0, 3])
        return first, first == 2 and draws.bernoulli(Fraction(1, 3))

    seen = dict(enumerate_scalar_draws(run))
    assert seen == {
        (0, False): Fraction(1, 4),
        (2, False): Fraction(1, 2),
        (2, True): Fraction(1, 4),
    }


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_the_oracles_refuse_what_is_no_probability(wrong):
    draws = EnumeratingDraws(torch.full((1, 4), -1))
    with pytest.raises(AssertionError, match="bernoulli"):
        draws.bernoulli(torch.tensor([wrong]))
    if not wrong > 1:
        with pytest.raises(AssertionError, match="categorical"):
            draws.categorical(torch.tensor([[wrong, 1.0]]))
    with pytest.raises(AssertionError, match="bernoulli"):
        ScalarEnumeratingDraws(()).bernoulli(wrong)
