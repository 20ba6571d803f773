"""Noise that belongs to a text's positions: the text does not depend on what is drafted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from eagle import Decoder, SamplingParams
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.budget import Costs, Curve, RankRates
from eagle.plugin.laws import Law
from eagle.testing import assert_decoder_lossless
from eagle.testing.exactness import assert_lossless
from eagle_plugins.acceptance.speculative import SpeculativeRule
from eagle_plugins.trees import narrowing
from eagle_plugins.trees.following import FollowingTree
from eagle_plugins.trees.narrowing import NarrowingTree
from tests.exact.tiny import exact_decoder

FEW = settings(
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
SAMPLED = SamplingParams(temperature=1.0)
TREES = [
    {"name": "static", "branching": [3, 2, 1], "sampling": "shared-noise"},
    {"name": "chain", "depth": 4, "sampling": "shared-noise"},
    {"name": "best-first", "nodes": 12, "depth": 4, "siblings": 3, "width": 3},
    {"name": "best-first", "nodes": 12, "depth": 4, "siblings": 3, "width": 3, "least": 0.1},
]
RATES = RankRates(levels=((0.6, 0.2, 0.1), (0.5, 0.2, 0.1)), positions=100, source="a test")


def costs(cheap: int) -> Costs:
    """Return costs by which a tree of so many nodes is the best, or nearly."""
    steep = [(n, 1.0 + (0.01 if n <= cheap else 5.0) * n) for n in range(1, 9)]
    return Costs(
        verify=Curve.of(steep), begin=0.001, level=Curve.of([(1, 0.001)]), rest=0.001, context=9
    )


def following() -> FollowingTree:
    """Return a tree of five nodes for one slot, of two for two, of one for more."""
    tree = FollowingTree(Topology.from_paths([[0], [1], [0, 0], [0, 1]]), RATES)
    for slots, cheap in ((1, 8), (2, 2), (4, 1)):
        tree.learn(slots, costs(cheap))
    return tree


# --- proofs ---------------------------------------------------------------------------------------


def test_speculative_is_lossless_under_shared_noise():
    assert_lossless(SpeculativeRule(), Law.SHARED_NOISE, settings=FEW)


@pytest.mark.parametrize("paths", [[[0], [1]], [[0], [1], [0, 0], [1, 0]]], ids=str)
def test_static_tree_of_shared_noise_is_lossless(paths):
    tree = StaticTree(Topology.from_paths(paths), Law.SHARED_NOISE)
    assert_lossless(SpeculativeRule(), builder=tree, settings=FEW)


def test_whole_decoder_is_lossless_though_cycles_draft_for_positions_drafted_before():
    decoder = exact_decoder(3, name="chain", depth=2, sampling="shared-noise")
    assert_decoder_lossless(decoder, [[1, 2]], SAMPLED, tokens=3, tolerance=1e-12)


class OneNoise(SpeculativeRule):
    """Draws at every level by the noise of the first."""

    def _follow_drawn(self, tree, target, shape, draws):
        race = draws.race

        class Draws:
            def race(self, weights, depth):
                return race(weights, 0)

        return super()._follow_drawn(tree, target, shape, Draws())


class Trusting(SpeculativeRule):
    """Takes the first candidate wherever the target might say it."""

    def _weights(self, target, node, alive):
        weights = super()._weights(target, node, alive)
        first = torch.zeros_like(weights).scatter(1, self.firsts.gather(1, node[:, None]), 1.0)
        likely = (weights * first).sum(1, keepdim=True) > 0
        return torch.where(likely, first, weights)

    def _follow_drawn(self, tree, target, shape, draws):
        index, exists = zip(
            *(
                tree.child(torch.full_like(tree.tokens[:, 0], node), 0)
                for node in range(tree.tokens.shape[1])
            ),
            strict=True,
        )
        self.firsts = tree.tokens.gather(1, torch.stack(index, 1))
        assert torch.stack(exists, 1).any()
        return super()._follow_drawn(tree, target, shape, draws)


@pytest.mark.parametrize("mutant", [OneNoise, Trusting])
def test_mutants_are_found_out(mutant):
    tree = StaticTree(Topology.from_paths([[0], [1], [0, 0]]), Law.SHARED_NOISE)
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(mutant(), builder=tree, settings=settings(FEW, max_examples=50))


# --- texts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(spec, pair):
    def make(tree, prompts=([1, 2, 3], [40, 5], [9]), **options):
        decoder = Decoder.from_spec(spec(tree=tree, attention="sdpa"), target=pair[0])
        params = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3, "ignore_eos": True}
        return decoder.generate(list(map(list, prompts)), **(params | options))

    return make


def test_a_seed_says_the_same_whatever_is_drafted(answers):
    found = [answers(tree) for tree in TREES]
    for other in found[1:]:
        assert [one.tokens for one in other] == [one.tokens for one in found[0]]
    filtered = [answers(tree, top_k=5, top_p=0.9, seed=8)[0].tokens for tree in TREES]
    assert len(set(filtered)) == 1
    taus = [one.stats.tau for other in found for one in other]
    assert max(taus) > 1.2


def test_at_temperature_zero_it_is_the_targets_own_text(answers):
    plain = answers({"name": "none"}, temperature=0.0)
    for tree in TREES:
        assert [r.tokens for r in answers(tree, temperature=0.0)] == [r.tokens for r in plain]


PROMPTS = [[1, 2, 3], [40, 5], [9], [7, 7, 8]]


def drafting_with(tree, decoder):
    """Let a decoder draft with another tree; return what is seen and chosen in every cycle."""
    decoder._cycle.__init__(
        decoder.target,
        decoder.resolved.features,
        decoder.resolved.head,
        tree,
        decoder.resolved.attention,
        decoder.resolved.acceptance,
    )
    object.__setattr__(decoder.loop._resolved, "tree", tree)
    chosen, choose = [], tree.choose
    tree.choose = lambda seen: chosen.append((seen, choose(seen))) or chosen[-1][1]
    return chosen


def test_a_text_does_not_depend_on_who_shares_the_batch_though_the_tree_does(spec, pair):
    decoder = Decoder.from_spec(spec(tree=TREES[0], attention="sdpa"), target=pair[0])
    tree = following()
    chosen, prompts = drafting_with(tree, decoder), PROMPTS
    params = [
        SamplingParams(max_new_tokens=30 - 6 * n, temperature=1.0, seed=n, ignore_eos=True)
        for n in range(4)
    ]
    alone = [decoder.generate(p, one).tokens for p, one in zip(prompts, params, strict=True)]
    assert {seen.active for seen, _ in chosen} == {1}
    shared = decoder.generate(prompts, params)
    assert [one.tokens for one in shared] == alone
    nodes = {seen.active: tree.alternatives[number].shape.nodes for seen, number in chosen}
    assert nodes[1] > nodes[2] > nodes[4] == 1


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.TOP_K])
def test_trees_of_greedy_requests_follow_the_batch_and_who_samples_has_that_of_all_slots(
    spec, pair, law, monkeypatch
):
    monkeypatch.setattr(narrowing, "_NODES", (3, 2))
    monkeypatch.setattr(narrowing, "_WIDTHS", (2, 4))
    monkeypatch.setattr(narrowing, "_SLOTS", (3, 5))
    usual = {"name": "static", "branching": [3, 2, 1], "sampling": law.name}
    decoder = Decoder.from_spec(spec(tree=usual, attention="sdpa"), target=pair[0])
    tree = NarrowingTree(Topology.from_branching([3, 2, 1]), law, RATES)
    chosen = drafting_with(tree, decoder)
    params = [
        SamplingParams(max_new_tokens=new, temperature=heat, seed=new, ignore_eos=True)
        for new, heat in ((40, 0.0), (12, 1.0), (34, 0.0), (26, 0.0))
    ]
    alone = [decoder.generate(p, one).tokens for p, one in zip(PROMPTS, params, strict=True)]
    assert {(seen.sampled, number) for seen, number in chosen} == {(False, 0), (True, 2)}
    del chosen[:]
    shared = decoder.generate(PROMPTS, params)
    assert [one.tokens for one in shared] == alone
    assert {seen.sampled for seen, _ in chosen} == {False, True}
    assert {seen.slots for seen, _ in chosen} == {decoder.max_batch}
    for seen, number in chosen:
        assert seen.width >= seen.active > 0
        assert number == (2 if seen.sampled or seen.width >= 4 else 0 if seen.width < 2 else 1)
    assert {number for _, number in chosen} == {0, 1, 2}
