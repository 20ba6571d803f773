"""Every way in which a rule is known to go wrong, and that the proof notices it.

What may go wrong with fixed sets of candidates alone is in `test_fixed_sets`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import Phase, settings

from eagle.plugin.blocks import scalar
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.draws import UniformDraws
from eagle.plugin.laws import KNOWN_LAWS, Law
from eagle.plugin.sampling import TargetProbs
from eagle.plugin.tree import TokenTree, TreeShape
from eagle.testing.exactness import assert_lossless
from eagle_plugins.acceptance.speculative import SpeculativeRule

# To know that it is caught is enough: no shrinking to the smallest example.
QUICK = {"phases": [Phase.generate], "max_examples": 500}
SAMPLED = [Law.WITHOUT_REPLACEMENT, Law.IID]


class Mutant(SpeculativeRule):
    scalar = None


class NoRenormalisationOfTheResidual(Mutant):
    @staticmethod
    def _residual(probs, proposal):
        return (probs - proposal).clamp(min=0)


class NoRenormalisationOfTheDraft(Mutant):
    @staticmethod
    def _rest(tree, draft, token, node):
        return draft.scatter(1, token, 0.0)


class NoZeroingOfTheDraft(Mutant):
    @staticmethod
    def _rest(tree, draft, token, node):
        return draft


class ZeroingUnderIid(Mutant):
    def accept(self, tree, target, shape, draws):
        tree = dataclasses.replace(tree, law=Law.WITHOUT_REPLACEMENT)
        return super().accept(tree, target, shape, draws)


class StaleDraft(Mutant):
    @staticmethod
    def _draft_at(tree, node):
        return SpeculativeRule._draft_at(tree, torch.zeros_like(node))


class DraftRowOfTheNodeNumber(Mutant):
    @staticmethod
    def _draft_at(tree, node):
        rows = torch.arange(tree.tokens.shape[1]).expand_as(tree.tokens)
        return SpeculativeRule._draft_at(dataclasses.replace(tree, draft_rows=rows), node)


class ResidualSkipped(Mutant):
    @staticmethod
    def _residual(probs, proposal):
        return probs


class ResidualZeroesTheCandidateOnly(Mutant):
    @staticmethod
    def _residual(probs, proposal):
        rest = probs.scatter(1, proposal.argmax(1, keepdim=True), 0.0)
        mass = rest.sum(1, keepdim=True)
        return (rest / mass).where(mass > 0, probs)


class BonusWithoutResidual(Mutant):
    @staticmethod
    def _after(target, node, alive, probs):
        return target.at(node)


class ProposalIgnored(Mutant):
    @staticmethod
    def _chance(probs, proposal, token):
        return probs.gather(1, token)[:, 0].clamp(max=1)


class InvertedRatio(Mutant):
    @staticmethod
    def _chance(probs, proposal, token):
        ratio = (proposal.gather(1, token) / probs.gather(1, token))[:, 0].clamp(max=1)
        return ratio.where(ratio > 0, 0)


class BonusWithoutTemperature(Mutant):
    """After a fully accepted path, as in the reference implementation."""

    def accept(self, tree, target, shape, draws):
        self.levels_left = shape.depth
        return super().accept(tree, target, shape, draws)

    def _after(self, target, node, alive, probs):
        self.levels_left -= 1
        if self.levels_left:
            return SpeculativeRule._after(target, node, alive, probs)
        return self._plain(target, node).where(alive[:, None], probs)

    def _weights(self, target, node, alive):
        if self.levels_left:
            self.levels_left -= 1
            return SpeculativeRule._weights(target, node, alive)
        return self._plain(target, node).where(alive[:, None], 0)

    @staticmethod
    def _plain(target, node):
        return target.logits[torch.arange(len(node)), node].softmax(-1)


class WithoutTopKTopPMinP(Mutant):
    def accept(self, tree, target, shape, draws):
        sampling = dataclasses.replace(
            target.sampling, filtered=False, min_p=torch.zeros_like(target.sampling.min_p)
        )
        return super().accept(tree, TargetProbs(target.logits, sampling), shape, draws)


class WrongSiblingOrder(Mutant):
    def accept(self, tree, target, shape, draws):
        return super().accept(
            dataclasses.replace(tree, ranks=shape.siblings - 1 - tree.ranks), target, shape, draws
        )


class SiblingsInNodeOrder(Mutant):
    def accept(self, tree, target, shape, draws):
        same = tree.parents[:, :, None] == tree.parents[:, None, :]
        ranks = (same.tril(-1)).sum(2)
        return super().accept(dataclasses.replace(tree, ranks=ranks), target, shape, draws)


class PaddingAccepted(Mutant):
    def accept(self, tree, target, shape, draws):
        parents = tree.parents.clamp(min=0)
        parents[:, 0] = -1
        return super().accept(dataclasses.replace(tree, parents=parents), target, shape, draws)


class GreedyBonusOfTheRoot(Mutant):
    @staticmethod
    def _follow_argmax(tree, target, shape):
        outcome = SpeculativeRule._follow_argmax(tree, target, shape)
        return dataclasses.replace(outcome, bonus=target.argmax[:, 0])


MUTANTS = [
    (NoRenormalisationOfTheResidual, SAMPLED),
    (NoRenormalisationOfTheDraft, [Law.WITHOUT_REPLACEMENT]),
    (NoZeroingOfTheDraft, [Law.WITHOUT_REPLACEMENT]),
    (ZeroingUnderIid, [Law.IID]),
    (StaleDraft, SAMPLED),
    (DraftRowOfTheNodeNumber, SAMPLED),
    (ResidualSkipped, SAMPLED),
    (ResidualZeroesTheCandidateOnly, SAMPLED),
    (BonusWithoutResidual, SAMPLED),
    (ProposalIgnored, SAMPLED),
    (InvertedRatio, SAMPLED),
    (BonusWithoutTemperature, list(KNOWN_LAWS)),
    (WithoutTopKTopPMinP, list(KNOWN_LAWS)),
    (WrongSiblingOrder, [Law.WITHOUT_REPLACEMENT]),
    (SiblingsInNodeOrder, [Law.WITHOUT_REPLACEMENT]),
    (PaddingAccepted, list(KNOWN_LAWS)),
    # At temperature 0 siblings are a fixed set, whatever law is configured.
    (GreedyBonusOfTheRoot, [Law.TOP_K]),
]


@pytest.mark.parametrize(
    ("mutant", "law"), [(mutant, law) for mutant, laws in MUTANTS for law in laws]
)
def test_mutant_of_the_batched_rule_is_caught(mutant, law):
    with pytest.raises(AssertionError, match=r"not lossless|is no path"):
        assert_lossless(mutant(), law, settings=settings(**QUICK))


def residual_not_normalised(weights, otherwise):
    return list(weights)


def residual_skipped(weights, otherwise):
    return list(otherwise)


@pytest.mark.parametrize("law", SAMPLED)
@pytest.mark.parametrize("broken", [residual_not_normalised, residual_skipped])
def test_mutant_of_the_scalar_rule_is_caught(monkeypatch, broken, law):
    monkeypatch.setattr(scalar, "_normalised", broken)
    with pytest.raises(AssertionError, match=r"speculative is not lossless"):
        assert_lossless(SpeculativeRule(), law, settings=settings(**QUICK))


class RowsOfTheRoot(StaticTree):
    def build(self, drafter, draws):
        tree = super().build(drafter, draws)
        if tree.draft_rows is None:
            return tree
        return dataclasses.replace(tree, draft_rows=torch.zeros_like(tree.draft_rows))


class LawMistaken(StaticTree):
    def build(self, drafter, draws):
        tree = super().build(drafter, draws)
        return dataclasses.replace(tree, law=Law.IID)


class RanksReversed(StaticTree):
    def build(self, drafter, draws):
        tree = super().build(drafter, draws)
        return dataclasses.replace(tree, ranks=self.shape.siblings - 1 - tree.ranks)


class Cherrypicking(StaticTree):
    """Draws both, then keeps only the child that the head finds likelier."""

    def build(self, drafter, draws):
        tree = super().build(drafter, draws)
        if tree.draft_probs is None:
            return tree
        chances = tree.draft_probs[:, 0].gather(1, tree.tokens[:, 1:3])
        drop = torch.nn.functional.pad(chances < chances.amax(1, keepdim=True), (1, 2))
        ranks = tree.ranks.clone()
        ranks[:, 1:3] -= drop[:, 1:2].long()
        return dataclasses.replace(tree, parents=tree.parents.where(~drop, -1), ranks=ranks)


@pytest.mark.parametrize("mutant", [RowsOfTheRoot, LawMistaken, RanksReversed, Cherrypicking])
def test_mutant_of_the_tree_builder_is_caught(mutant):
    paths = [[0], [1], [0, 0], [0, 1]]
    builder = mutant(Topology.from_paths(paths), Law.WITHOUT_REPLACEMENT)
    with pytest.raises(AssertionError, match=r"not lossless"):
        assert_lossless(SpeculativeRule(), builder=builder, settings=settings(**QUICK))


class InclusiveDraws(UniformDraws):
    def bernoulli(self, probs):
        return self.read(1)[:, 0] <= probs


def _accepts_the_impossible(draws: UniformDraws) -> bool:
    """Whether u = 0 accepts a candidate that the target gives no probability."""
    one = torch.zeros(1, 2, dtype=torch.int64)
    tree = TokenTree(
        tokens=torch.tensor([[0, 1]]),
        parents=torch.tensor([[-1, 0]]),
        depths=torch.tensor([[0, 1]]),
        ranks=one,
        ancestors=torch.tensor([[[True, False], [True, True]]]),
        draft_probs=torch.tensor([[[0.0, 1.0]]]),
        draft_rows=one,
        sampled=torch.tensor([True]),
        law=Law.IID,
    )

    class Target:
        greedy = False

        def at(self, nodes):
            return torch.tensor([[1.0, 0.0]])

    return bool(SpeculativeRule().accept(tree, Target(), TreeShape(2, 1, 1, 0), draws).count)


def test_less_or_equal_for_less_is_caught_at_zero():
    assert not _accepts_the_impossible(UniformDraws(torch.zeros(1, 2)))
    assert _accepts_the_impossible(InclusiveDraws(torch.zeros(1, 2)))
