"""Block verification of chains; knows distributions and trees of one candidate a level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from eagle.plugin import (
    EVERY_LAW,
    Acceptance,
    BuildContext,
    Draws,
    Law,
    Number,
    ScalarDraws,
    ScalarNode,
    Strategy,
    StrategyConfig,
    TargetProbs,
    TokenTree,
    TreeShape,
    follow_argmax,
    follow_drawn,
    path_to,
    scalar_speculative,
)
from eagle_strategies.rules.measure import Owed, proposal_of, scalar_rest

__all__ = ["BLOCK", "BlockRule", "scalar_block"]


def scalar_block(root: ScalarNode, law: Law, draws: ScalarDraws) -> tuple[list[ScalarNode], int]:
    """Do for one slot, in plain Python, what `BlockRule` does: accepted nodes and bonus token."""
    if law.fixed:
        return scalar_speculative(root, law, draws)
    chain: list[ScalarNode] = [root]
    scale: Number = 1
    ends: list[tuple[Number, Sequence[Number]]] = []
    while children := chain[-1].children:
        node, child = chain[-1], children[0]
        proposal: Sequence[Number] = node.draft or [
            int(t == child.token) for t in range(len(node.target))
        ]
        ends.append(scalar_rest(scale, node.target, proposal))
        scale = min(1, scale * node.target[child.token] / proposal[child.token])
        chain.append(child)
    ends.append((scale, chain[-1].target))
    while True:
        end, left = ends.pop()
        if draws.bernoulli(end):
            return chain[1 : len(ends) + 1], draws.categorical(left)


class BlockRule:
    """Block verification (arXiv 2403.10444): a chain is judged as a whole, from its end.

    Down the chain, node i has the scale a(i) = min(1, a(i - 1) p(x) / q(x)), a(0) = 1. So a
    candidate that the target likes better than the draft does makes up for one before it. What node
    i owes once the one below is rejected has the mass s = sum(max(a(i) p - q, 0)), so it ends the
    path with the probability s / (s + 1 - a(i)), the last one with a(i); the deepest node that does
    so is accepted, and the bonus token is drawn from what it owes. No rule for chains accepts more
    tokens on average. For a fixed set there is nothing to gain, and one token is drawn from p.
    """

    capturable = True
    lossless = True
    laws = EVERY_LAW
    scalar = staticmethod(scalar_block)

    @property
    def topology(self) -> Literal["tree", "chain"]:
        """See `eagle.plugin.NeedsTopology`."""
        return "chain"

    def uniforms(self, shape: TreeShape) -> int:
        """Return how many uniforms `accept` reads at most: two, or one a level for fixed sets."""
        return max(2, shape.depth + 1)

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        """Choose where each slot's chain is cut, and the bonus token."""
        if target.greedy:
            return follow_argmax(tree, target, shape)
        if all(law.fixed for law in tree.every_law):
            return follow_drawn(tree, target, shape, draws)
        node = torch.zeros_like(tree.tokens[:, 0])
        first = target.at(node)
        scale, nodes, entries, ends = torch.ones_like(first[:, :1]), [node], [], []
        for depth in range(shape.depth + 1):
            owed = Owed(scale, first if depth == 0 else target.at(node))
            child, exists = tree.child(node, 0)
            chance, rest = self._try(tree, owed, node, child)
            entries.append(scale)
            ends.append(rest.scale.where(exists[:, None], scale))
            # Below the end of a shorter chain nothing is owed.
            scale = chance.where(exists[:, None], 0)
            node = child.where(exists, node)
            nodes.append(node)
        # From the end: what is drawn is how far from it the accepted path ends.
        end = torch.cat(ends[::-1], 1)
        below = torch.cat((torch.ones_like(end[:, :1]), (1 - end)[:, :-1].cumprod(1)), 1)
        drawn = draws.categorical(end * below)
        chosen = shape.depth - drawn[:, None]
        node = torch.stack(nodes, 1).gather(1, chosen)[:, 0]
        owed = Owed(torch.cat(entries, 1).gather(1, chosen), target.at(node))
        child, exists = tree.child(node, 0)
        left = self._try(tree, owed, node, child)[1].where(exists, owed)
        return Acceptance(*path_to(tree, node, shape), draws.categorical(left.probs))

    @staticmethod
    def _try(tree: TokenTree, owed: Owed, node: Tensor, child: Tensor) -> tuple[Tensor, Owed]:
        """Return the scale of a node's only child, and what is owed once that is rejected."""
        token = tree.tokens.gather(1, child[:, None])
        proposal = torch.zeros_like(owed.probs).scatter(1, token, 1.0)
        draft = tree.drafts_at(node)
        if draft is not None:
            left = tree.widened(draft, owed.probs.shape[-1]).to(owed.probs.dtype)
            proposal = proposal_of(tree, left, proposal, node, torch.zeros_like(node), 1)
        return owed.chance(proposal, token), owed.after(proposal)


def _build(config: StrategyConfig, context: BuildContext) -> BlockRule:
    return BlockRule()


BLOCK = Strategy(
    name="block",
    config=StrategyConfig,
    build=_build,
    description="judges a chain as a whole, from its end; keeps the target's distribution",
)
