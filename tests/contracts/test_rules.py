"""Laws, rules and draws that are not the shipped ones, and what is wrong with those that lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, settings

from eagle.errors import IncompatibleError
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.draws import UniformDraws
from eagle.plugin.laws import EVERY_LAW, KNOWN_LAWS, Law
from eagle.plugin.sampling import Sampling, SamplingParams
from eagle.spec import DecoderSpec, resolve
from eagle.testing import assert_lossless
from eagle.testing.oracle import ScalarEnumeratingDraws, TableDrafter, enumerate_scalar_draws
from eagle_plugins.acceptance.speculative import SpeculativeRule
from eagle_plugins.trees.dynamic import DynamicConfig, DynamicTree
from tests.contracts.toys import Block, Fan, Inverse, Steep, registry

SOME = settings(max_examples=25, deadline=None)
CAUGHT = settings(phases=[Phase.generate], max_examples=300, deadline=None)


class Batched(SpeculativeRule):
    scalar = None


def test_the_speculative_rule_is_lossless_under_a_law_of_ones_own():
    assert_lossless(SpeculativeRule(), Steep(), settings=SOME)


def test_a_builder_is_proved_by_its_own_law():
    assert_lossless(SpeculativeRule(), builder=Fan(Steep()), settings=SOME)


def test_a_law_that_says_something_else_than_is_done_is_caught():
    class Lying(Steep):
        def proposal(self, left, rank):
            return left

    class Fraud(Fan):
        def build(self, drafter, draws):
            tree = super().build(drafter, draws)
            return replace(tree, law=Lying()) if tree.law == Steep() else tree

    with pytest.raises(AssertionError, match="not lossless under steep"):
        assert_lossless(Batched(), builder=Fraud(Steep()), settings=CAUGHT)


class LawOfTheRoot(Batched):
    """Takes every node's children to have come about as the root's."""

    def accept(self, tree, target, shape, draws):
        if tree.node_laws is not None:
            tree = replace(tree, node_laws=tree.node_laws[:, :1].expand_as(tree.node_laws))
        return super().accept(tree, target, shape, draws)


class PlacesForTokens(Batched):
    """Takes places in the vocabulary of drafts for the target's tokens."""

    def accept(self, tree, target, shape, draws):
        if tree.draft_probs is not None and tree.draft_vocab is not None:
            missing = target.logits.shape[-1] - tree.draft_probs.shape[-1]
            probs = torch.nn.functional.pad(tree.draft_probs, (0, missing))
            tree = replace(tree, draft_probs=probs, draft_vocab=None)
        return super().accept(tree, target, shape, draws)


@pytest.mark.parametrize("mutant", [LawOfTheRoot, PlacesForTokens])
@pytest.mark.parametrize("law", [Law.IID, Law.WITHOUT_REPLACEMENT], ids=str)
def test_a_rule_that_mistakes_a_nodes_law_or_the_drafts_vocabulary_is_caught(mutant, law):
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(mutant(), law, settings=CAUGHT)


def test_every_law_is_known_by_name_and_others_belong_to_every_law():
    assert [Law.named(str(law)) for law in KNOWN_LAWS] == list(KNOWN_LAWS)
    assert Steep() in EVERY_LAW
    assert Steep() == Steep() != Law.IID
    assert Law.named("steep", [Steep()]) == Steep()
    with pytest.raises(ValueError, match="no law 'steep'; known: iid, shared-noise, top-k"):
        Law.named("steep")


# --- trees that vary -----------------------------------------------------------------------------


class ChosenAfterTheDraw(StaticTree):
    """Leaves out the second token of a chain where the head did not find the first one likely."""

    def build(self, drafter, draws):
        tree = super().build(drafter, draws)
        if tree.draft_probs is None:
            return tree
        drawn = tree.draft_probs[:, 0].gather(1, tree.tokens[:, 1:2])
        drop = torch.nn.functional.pad(drawn < 0.5, (1, tree.tokens.shape[1] - 2))
        return replace(tree, parents=tree.parents.where(~drop, -1))


def test_a_choice_after_the_draw_is_caught_as_biased():
    chain = Topology.from_branching([1])
    assert_lossless(SpeculativeRule(), builder=StaticTree(chain), settings=SOME)
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(Batched(), builder=ChosenAfterTheDraw(chain), settings=CAUGHT)


@pytest.mark.parametrize(
    "tree",
    [
        StaticTree(Topology.from_paths([[0], [1], [0, 0]])),
        StaticTree(Topology.from_paths([[0], [1], [0, 0]]), Law.TOP_K),
        DynamicTree(DynamicConfig(nodes=4, depth=2, top_k=2)),
    ],
    ids=["drawn", "top-k", "dynamic"],
)
def test_shipped_trees_draft_from_a_vocabulary_of_the_heads(tree):
    tables = [torch.tensor([[2.0, 1.0, 0.0]]), torch.randn(5, 3)]
    sampling = Sampling.of([SamplingParams(temperature=1.0)], "cpu")
    drafter = TableDrafter(tables, sampling, 0, torch.tensor([4, 1, 2]))
    uniforms = torch.zeros(1, tree.uniforms, dtype=torch.float64)
    found = drafter.finish(tree.build(drafter, UniformDraws(uniforms)))
    assert found.tokens[0, 1:3].tolist() == [4, 1], "the likeliest tokens, as the target's ids"


# --- rules for chains, and continuous draws ------------------------------------------------------


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_block_verification_is_lossless_on_chains(law):
    assert_lossless(Block(), law, settings=SOME)


def test_block_verification_without_the_residual_is_caught():
    class Greedier(Block):
        def accept(self, tree, target, shape, draws):
            class Yes:
                categorical = staticmethod(draws.categorical)

                @staticmethod
                def bernoulli(probs):
                    return draws.bernoulli((2 * probs).clamp(max=1))

            return super().accept(tree, target, shape, Yes)

    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(Greedier(), Law.IID, settings=CAUGHT)


def test_a_rule_for_chains_is_refused_with_a_tree_by_name():
    spec = DecoderSpec(head="mtp", tree="static", acceptance="block")
    with pytest.raises(IncompatibleError) as caught:
        resolve(spec, registry())
    message = str(caught.value)
    assert "acceptance rule 'block' (toys 1) is for chains" in message
    assert "tree builder 'static'" in message
    assert "use a tree that is a chain (`tree: chain`)" in message
    varying = DecoderSpec(head="mtp", tree="varying", acceptance="block")
    with pytest.raises(IncompatibleError, match="gives a node up to 2 children"):
        resolve(varying, registry())
    assert resolve(DecoderSpec(head="mtp", tree="chain", acceptance="block"), registry()).lossless


@pytest.mark.parametrize("law", [Law.TOP_K, Law.IID], ids=str)
def test_a_rule_of_continuous_draws_is_proved(law):
    assert_lossless(Inverse(), law, settings=SOME)


def test_a_cut_that_is_left_out_is_caught():
    class Careless(Inverse):
        def cuts(self, sums):
            return sums[:, 1:]

    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(Careless(), Law.TOP_K, settings=CAUGHT)


def test_a_uniform_in_production_is_one_that_is_read():
    uniforms = torch.tensor([[0.25, 0.5], [0.75, 0.0]])

    def never():
        raise AssertionError("only an oracle asks for the cuts")

    draws = UniformDraws(uniforms)
    assert draws.uniform(never).tolist() == [0.25, 0.75]
    assert draws.used == 1


def test_the_scalar_oracle_visits_every_interval():
    def run(draws: ScalarEnumeratingDraws):
        return draws.uniform(lambda: [0.75, 0.25, 0.25])

    assert [(float(u), float(p)) for u, p in enumerate_scalar_draws(run)] == [
        (0.125, 0.25),
        (0.875, 0.25),
        (0.5, 0.5),
    ]
