"""A tree judged from its leaves to its root, in fixed shapes; knows no way to try siblings.

What a node is owed depends on the nodes above it and on the siblings tried before it, and never on
what becomes of any node below. So the scales of all nodes come first, one sibling after another,
parents before children. A node then ends the path with the probability that is its scale once its
last child has been rejected, if no node that is visited before it has: one draw decides that for
the whole tree, and another the bonus token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from eagle.plugin import (
    Acceptance,
    Draws,
    TargetProbs,
    TokenTree,
    TreeShape,
    follow_argmax,
    follow_drawn,
    path_to,
)
from eagle_strategies.rules.measure import Owed

__all__ = ["BottomUp", "Brood", "Tried"]


class Brood(Protocol):
    """The siblings under one node per slot, as far as they have been tried."""

    @property
    def owed(self) -> Owed:
        """What the node owes now."""
        ...

    def where(self, chosen: Tensor, other: Self) -> Self:
        """Return this where *chosen*, bool ``[B]``, and the other elsewhere."""
        ...


B = TypeVar("B", bound=Brood)


@dataclass(frozen=True)
class Tried(Generic[B]):
    """One sibling per slot that has been tried.

    Attributes:
        child: int64 ``[B]``, which.
        scale: ``[B, 1]``, its own scale.
        brood: what there is after its rejection.
    """

    child: Tensor
    scale: Tensor
    brood: B


class BottomUp(ABC, Generic[B]):
    """A rule that visits children before their parent; a subclass says how siblings are tried."""

    capturable = True
    lossless = True

    def uniforms(self, shape: TreeShape) -> int:
        """Return how many uniforms `accept` reads at most: two, or one a level for fixed sets."""
        return max(2, shape.depth + 1)

    @abstractmethod
    def begin(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, node: Tensor, owed: Owed
    ) -> B:
        """Return the siblings under a node, int64 ``[B]``, none of them tried."""

    @abstractmethod
    def attempt(
        self,
        tree: TokenTree,
        shape: TreeShape,
        brood: B,
        child: Tensor,
        after: Tensor,
        more: Tensor,
    ) -> Tried[B]:
        """Try one sibling.

        Args:
            tree: the trees.
            shape: of the trees.
            brood: the siblings.
            child: int64 ``[B]``, the next one in the order of ranks.
            after: int64 ``[B]``, the one behind it.
            more: bool ``[B]``, whether there is one.
        """

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        """Choose where each slot's path ends, and the bonus token."""
        if target.greedy:
            return follow_argmax(tree, target, shape)
        if all(law.fixed for law in tree.every_law):
            return follow_drawn(tree, target, shape, draws)
        entry, scale, turn = self._scales(tree, target, shape)
        before = _visited_before(tree, turn)
        spared = (1 - scale)[:, None].where(before, 1).prod(2)
        # In the order of visits, padding behind the root.
        visits = before.sum(2) + (shape.nodes + 1) * _padding(tree)
        order = visits.argsort(dim=1, stable=True)
        drawn = draws.categorical((scale * spared).gather(1, order))
        node = order.gather(1, drawn[:, None])
        left = self._left(tree, target, shape, node[:, 0], entry.gather(1, node))
        return Acceptance(*path_to(tree, node[:, 0], shape), draws.categorical(left.probs))

    def _scales(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all nodes' scales ``[B, N]`` before and after their children; when each is tried.

        Children are gone through by parent and rank, so a parent's own scale is known in time.
        """
        nodes, parents = shape.nodes, tree.parents
        wide = max(nodes, shape.siblings + 1)
        key = (parents * wide + tree.ranks).where(parents >= 0, nodes * wide)
        order = key.argsort(dim=1, stable=True)
        root = torch.zeros_like(parents[:, 0])
        owed = target.at(root)
        entry = torch.zeros_like(parents, dtype=owed.dtype)
        entry[:, 0] = 1
        scale, turn = entry, torch.zeros_like(parents)
        brood: B | None = None
        last = root - 1
        for number in range(nodes - 1):
            child, after = order[:, number : number + 1], order[:, number + 1]
            parent = parents.gather(1, child)
            real = parent >= 0
            above = parent.clamp(min=0)
            fresh = self.begin(
                tree, target, shape, above[:, 0],
                Owed(scale.gather(1, above), target.at(above[:, 0])),
            )  # fmt: skip
            brood = fresh if brood is None else fresh.where(parent[:, 0] != last, brood)
            more = (parents.gather(1, after[:, None]) == parent) & real
            tried = self.attempt(tree, shape, brood, child[:, 0], after, more[:, 0])
            brood, last, own = tried.brood, parent[:, 0], tried.child[:, None]
            entry = _put(entry, own, tried.scale, real)
            scale = _put(scale, own, tried.scale, real)
            scale = _put(scale, above, brood.owed.scale, real)
            turn = _put(turn, own, torch.full_like(own, number), real)
        return entry, scale, turn

    def _left(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, node: Tensor, scale: Tensor
    ) -> Owed:
        """Return what a node per slot owes once all its children have been rejected."""
        own = tree.parents == node[:, None]
        order = tree.ranks.where(own, shape.siblings + 1).argsort(dim=1, stable=True)
        exist = own.gather(1, order)
        brood = self.begin(tree, target, shape, node, Owed(scale, target.at(node)))
        for turn in range(shape.siblings):
            more = exist[:, turn + 1] if turn + 1 < shape.nodes else exist[:, turn] & False
            after = order[:, min(turn + 1, shape.nodes - 1)]
            tried = self.attempt(tree, shape, brood, order[:, turn], after, more)
            brood = tried.brood.where(exist[:, turn], brood)
        return brood.owed


def _put(table: Tensor, place: Tensor, value: Tensor, real: Tensor) -> Tensor:
    """Return a table ``[B, N]`` with values ``[B, 1]`` at places ``[B, 1]`` where they are real."""
    return table.scatter(1, place, value.to(table.dtype).where(real, table.gather(1, place)))


def _padding(tree: TokenTree) -> Tensor:
    """Return which nodes are padding, int64 ``[B, N]``."""
    padding = (tree.parents < 0).to(torch.int64)
    padding[:, 0] = 0
    return padding


def _visited_before(tree: TokenTree, turn: Tensor) -> Tensor:
    """Return bool ``[B, N, N]``: entry (n, m) says that m is visited before n.

    That is so of what is below n, and of a sibling that is tried earlier than n, or than what n is
    below, with all that is below that sibling.
    """
    siblings = (tree.parents[:, :, None] == tree.parents[:, None]) & (tree.parents >= 0)[:, None]
    earlier = siblings & (turn[:, None] < turn[:, :, None])
    within = tree.ancestors.to(torch.float32)
    aside = within @ earlier.to(torch.float32) @ within.mT > 0
    own = torch.eye(turn.shape[1], dtype=torch.bool, device=turn.device)
    return aside | (tree.ancestors.mT & ~own)
