"""Traversal verification of trees; knows how siblings are tried one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.plugin import (
    EVERY_LAW,
    BuildContext,
    Law,
    Number,
    ScalarDraws,
    ScalarNode,
    Strategy,
    StrategyConfig,
    TargetProbs,
    TokenTree,
    TreeShape,
    scalar_speculative,
)
from eagle_strategies.rules.measure import Owed, proposal_of, scalar_rest
from eagle_strategies.rules.upwards import BottomUp, Tried

__all__ = ["TRAVERSAL", "TraversalRule", "scalar_traversal"]


def scalar_traversal(
    root: ScalarNode, law: Law, draws: ScalarDraws
) -> tuple[list[ScalarNode], int]:
    """Do for one slot, in plain Python, what `TraversalRule` does: accepted nodes, bonus token."""
    if law.fixed:
        return scalar_speculative(root, law, draws)
    found = _visit(root, 1, law, draws)
    assert found is not None, "the root's scale is 1 to the last"
    return found


def _visit(
    node: ScalarNode, scale: Number, law: Law, draws: ScalarDraws
) -> tuple[list[ScalarNode], int] | None:
    """Return the accepted nodes below a node and the bonus token, or None: it is rejected."""
    target, draft = node.target, node.draft
    for child in node.children:
        token = child.token
        proposal = draft or [int(t == token) for t in range(len(target))]
        found = _visit(child, min(1, scale * target[token] / proposal[token]), law, draws)
        if found is not None:
            return [child, *found[0]], found[1]
        scale, target = scalar_rest(scale, target, proposal)
        if draft is not None and law == Law.WITHOUT_REPLACEMENT:
            others = [0 if t == token else q for t, q in enumerate(draft)]
            draft = [q / sum(others) for q in others] if any(others) else others
    return ([], draws.categorical(target)) if draws.bernoulli(scale) else None


@dataclass(frozen=True)
class _InTurn:
    """Siblings that are tried in the order in which they were drawn.

    Attributes:
        owed: by the node above them.
        node: int64 ``[B]``, the node above them.
        draft: ``[B, V]``, what the law has left of the draft distribution; None: fixed sets.
    """

    owed: Owed
    node: Tensor
    draft: Tensor | None

    def where(self, chosen: Tensor, other: _InTurn) -> _InTurn:
        draft = self.draft
        if draft is not None and other.draft is not None:
            draft = draft.where(chosen[:, None], other.draft)
        return _InTurn(
            self.owed.where(chosen, other.owed), self.node.where(chosen, other.node), draft
        )


class TraversalRule(BottomUp[_InTurn]):
    """Traversal verification (arXiv 2505.12398): a tree is judged from its leaves to its root.

    A child x, drawn from q, of a node that owes a p has the scale min(1, a p(x) / q(x)). If it and
    all below it are rejected, the node owes max(a p - q, 0), as a new scale and distribution, and
    the next sibling is tried against that. A node without further children ends the path with the
    probability that is its scale. On a chain this is block verification. It accepts more than
    recursive rejection, which gives a whole subtree up where it has rejected the token on top.
    """

    laws = EVERY_LAW
    scalar = staticmethod(scalar_traversal)

    def begin(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, node: Tensor, owed: Owed
    ) -> _InTurn:
        """See `BottomUp.begin`."""
        draft = tree.drafts_at(node)
        if draft is not None:
            draft = tree.widened(draft, owed.probs.shape[-1]).to(owed.probs.dtype)
        return _InTurn(owed, node, draft)

    def attempt(
        self,
        tree: TokenTree,
        shape: TreeShape,
        brood: _InTurn,
        child: Tensor,
        after: Tensor,
        more: Tensor,
    ) -> Tried[_InTurn]:
        """See `BottomUp.attempt`."""
        token = tree.tokens.gather(1, child[:, None])
        proposal = torch.zeros_like(brood.owed.probs).scatter(1, token, 1.0)
        draft = brood.draft
        if draft is not None:
            rank = tree.ranks.gather(1, child[:, None])[:, 0]
            proposal = proposal_of(tree, draft, proposal, brood.node, rank, shape.siblings)
            draft = self._rest(tree, brood.node, draft, token)
        owed = brood.owed
        return Tried(
            child, owed.chance(proposal, token), _InTurn(owed.after(proposal), brood.node, draft)
        )

    @staticmethod
    def _rest(tree: TokenTree, node: Tensor, draft: Tensor, token: Tensor) -> Tensor:
        """Return what is left of draft distributions ``[B, V]`` once a token has been drawn."""
        return tree.by_law(node, lambda law: law.rest(draft, token))


def _build(config: StrategyConfig, context: BuildContext) -> TraversalRule:
    return TraversalRule()


TRAVERSAL = Strategy(
    name="traversal",
    config=StrategyConfig,
    build=_build,
    description="judges a tree from its leaves to its root; keeps the target's distribution",
)
