"""Fixed sets of candidates: one draw from the target does what trying them in turn does.

The rule draws where the law is top-k. It tries in turn where a slot has a fixed set in a batch of
another law, so that both ways have to be lossless, and their mutants to be caught.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin.blocks import scalar
from eagle.plugin.blocks.scalar import scalar_speculative
from eagle.plugin.draws import UniformDraws
from eagle.plugin.tree import Law, TokenTree, TreeShape
from eagle.testing.exactness import assert_lossless
from eagle.testing.oracle import enumerate_scalar_draws
from eagle_plugins.acceptance.speculative import SpeculativeRule
from tests.exact.test_mutants import (
    QUICK,
    BonusWithoutResidual,
    BonusWithoutTemperature,
    InvertedRatio,
    Mutant,
    NoRenormalisationOfTheResidual,
    PaddingAccepted,
    ResidualSkipped,
    WithoutTopKTopPMinP,
    residual_not_normalised,
    residual_skipped,
)

# --- both ways are right, and they are the same ---------------------------------------------------


class TriedInTurn(SpeculativeRule):
    """The rule for a fixed set in a batch of another law."""

    laws = frozenset({Law.TOP_K})

    @staticmethod
    def scalar(root, law, draws):
        return scalar_speculative(root, Law.IID, draws)

    def accept(self, tree, target, shape, draws):
        return super().accept(dataclasses.replace(tree, law=Law.IID), target, shape, draws)


def test_trying_in_turn_is_lossless():
    assert_lossless(TriedInTurn())


@dataclass(frozen=True)
class Candidate:
    token: int
    target: list[Fraction]
    children: tuple[Candidate, ...] = ()
    draft = None


@st.composite
def fixed_sets(draw, depth=3):
    """Return a node whose children are a fixed set, each of them another such node."""
    vocab = 4
    weights = draw(st.tuples(*[st.sampled_from((0, 0, 1, 1, 2, 3, 5))] * vocab).filter(any))
    target = [Fraction(weight, sum(weights)) for weight in weights]
    tokens = draw(st.permutations(range(vocab)))[: draw(st.integers(0, 3)) if depth > 1 else 0]
    below = [draw(fixed_sets(depth=depth - 1)) for _ in tokens]
    children = [
        dataclasses.replace(node, token=token) for node, token in zip(below, tokens, strict=True)
    ]
    return Candidate(0, target, tuple(children))


@settings(max_examples=200)
@given(fixed_sets())
def test_drawing_once_has_the_outcomes_of_trying_in_turn(root):
    found = []
    for law in (Law.TOP_K, Law.IID):
        outcomes = Counter()
        for (accepted, bonus), chance in enumerate_scalar_draws(
            lambda draws, law=law: scalar_speculative(root, law, draws)
        ):
            outcomes[tuple(node.token for node in accepted), bonus] += chance
        found.append(outcomes)
    assert found[0] == found[1]
    assert sum(found[0].values()) == 1


# --- mutants of drawing ---------------------------------------------------------------------------


class DrawnWithoutTemperature(Mutant):
    @staticmethod
    def _weights(target, node, alive):
        plain = target.logits[torch.arange(len(node)), node].softmax(-1)
        return plain.where(alive[:, None], 0)


class DrawnFromTheRootsTarget(Mutant):
    @staticmethod
    def _weights(target, node, alive):
        return SpeculativeRule._weights(target, torch.zeros_like(node), alive)


class DrawnFromTheTargetWithoutCandidates(Mutant):
    """A residual where none is needed."""

    def accept(self, tree, target, shape, draws):
        self.tree = tree
        return super().accept(tree, target, shape, draws)

    def _weights(self, target, node, alive):
        weights = SpeculativeRule._weights(target, node, alive)
        children = self.tree.parents == node[:, None]
        taken = torch.zeros_like(weights).scatter_add(1, self.tree.tokens, children.to(weights))
        return weights.where(taken == 0, 0)


class BonusDrawnAgain(Mutant):
    """The token that was drawn and is no candidate is thrown away, and another is drawn."""

    def _follow_drawn(self, tree, target, shape, draws):
        outcome = super()._follow_drawn(tree, target, shape, draws)
        last = outcome.path.gather(1, outcome.count[:, None])[:, 0]
        return dataclasses.replace(outcome, bonus=draws.categorical(target.at(last)))


class StoppedSlotGoesOn(Mutant):
    """Who drew no candidate stays alive, and draws at the same node again."""

    @staticmethod
    def _children_with(tree, node, token):
        match = SpeculativeRule._children_with(tree, node, token)
        itself = torch.arange(match.shape[1]) == node[:, None]
        return match | (itself & ~match.any(1, keepdim=True))


class ChildWithAnotherToken(Mutant):
    @staticmethod
    def _children_with(tree, node, token):
        return tree.parents == node[:, None]


class ChildOfAnotherNode(Mutant):
    @staticmethod
    def _children_with(tree, node, token):
        return (tree.parents >= 0) & (tree.tokens == token[:, None])


class PaddingIsAChild(Mutant):
    @staticmethod
    def _children_with(tree, node, token):
        padding = (tree.parents < 0) & (torch.arange(tree.parents.shape[1]) > 0)
        child = (tree.parents == node[:, None]) | padding
        return child & (tree.tokens == token[:, None])


@pytest.mark.parametrize(
    "mutant",
    [
        DrawnWithoutTemperature,
        DrawnFromTheRootsTarget,
        DrawnFromTheTargetWithoutCandidates,
        BonusDrawnAgain,
        StoppedSlotGoesOn,
        ChildWithAnotherToken,
        ChildOfAnotherNode,
        PaddingIsAChild,
    ],
)
def test_mutant_of_drawing_is_caught(mutant):
    with pytest.raises(AssertionError, match=r"not lossless|is no path"):
        assert_lossless(mutant(), Law.TOP_K, settings=settings(**QUICK))


def _bonus_drawn_again(node, law, draws, original=scalar._draw):
    child, _ = original(node, law, draws)
    return child, draws.categorical(node.target)


def _first_child_whatever_was_drawn(node, law, draws, original=scalar._draw):
    _, token = original(node, law, draws)
    return next(iter(node.children), None), token


@pytest.mark.parametrize("broken", [_bonus_drawn_again, _first_child_whatever_was_drawn])
def test_mutant_of_scalar_drawing_is_caught(monkeypatch, broken):
    monkeypatch.setattr(scalar, "_draw", broken)
    with pytest.raises(AssertionError, match=r"speculative is not lossless"):
        assert_lossless(SpeculativeRule(), Law.TOP_K, settings=settings(**QUICK))


class InclusiveDraws(UniformDraws):
    def categorical(self, weights):
        reached = weights.cumsum(-1) >= self.read(1) * weights.sum(-1, keepdim=True)
        return reached.to(torch.uint8).argmax(-1)


@pytest.mark.parametrize(("draws", "accepted"), [(UniformDraws, 0), (InclusiveDraws, 1)])
def test_less_or_equal_for_less_is_caught_at_zero(draws, accepted):
    one = torch.tensor([[0, 1]])
    tree = TokenTree(
        tokens=torch.zeros(1, 2, dtype=torch.int64),
        parents=torch.tensor([[-1, 0]]),
        depths=one,
        ranks=torch.zeros_like(one),
        ancestors=torch.tensor([[[True, False], [True, True]]]),
    )

    class Target:
        greedy = False

        def at(self, nodes):
            return torch.tensor([[0.0, 1.0]])

    outcome = SpeculativeRule().accept(
        tree, Target(), TreeShape(2, 1, 1, 0), draws(torch.zeros(1, 2))
    )
    assert outcome.count.tolist() == [accepted]


# --- mutants of trying in turn --------------------------------------------------------------------


@pytest.mark.parametrize(
    "mutant",
    [
        NoRenormalisationOfTheResidual,
        ResidualSkipped,
        BonusWithoutResidual,
        InvertedRatio,
        BonusWithoutTemperature,
        WithoutTopKTopPMinP,
        PaddingAccepted,
    ],
)
def test_mutant_of_trying_in_turn_is_caught(mutant):
    tried = type(f"{mutant.__name__}InTurn", (TriedInTurn, mutant), {"scalar": None})
    with pytest.raises(AssertionError, match=r"not lossless|is no path"):
        assert_lossless(tried(), settings=settings(**QUICK))


@pytest.mark.parametrize("broken", [residual_not_normalised, residual_skipped])
def test_mutant_of_scalar_trying_in_turn_is_caught(monkeypatch, broken):
    monkeypatch.setattr(scalar, "_normalised", broken)
    with pytest.raises(AssertionError, match=r"scalar is not lossless"):
        assert_lossless(TriedInTurn(), settings=settings(**QUICK))
