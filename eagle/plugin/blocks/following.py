"""Acceptance where no candidate was drawn: along what the target itself says; knows trees, no law.

For fixed sets of candidates no rule accepts more, so rules differ only in what they do with others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eagle.plugin import Acceptance, Draws, Law, TargetProbs, TokenTree, TreeShape

__all__ = ["children_with", "follow_argmax", "follow_drawn", "path_to", "weights_at"]

Weights = Callable[[TargetProbs, Tensor, Tensor], Tensor]
Children = Callable[[TokenTree, Tensor, Tensor], Tensor]


def children_with(tree: TokenTree, node: Tensor, token: Tensor) -> Tensor:
    """Return bool ``[B, N]``: the children of one node per slot, int64 ``[B]``, with a token."""
    return (tree.parents == node[:, None]) & (tree.tokens == token[:, None])


def weights_at(target: TargetProbs, node: Tensor, alive: Tensor) -> Tensor:
    """Return what the next token is drawn from, ``[B, V]``; zeros where a slot has stopped."""
    return target.at(node).where(alive[:, None], 0)


def follow_argmax(tree: TokenTree, target: TargetProbs, shape: TreeShape) -> Acceptance:
    """Accept along the target's most likely tokens: any lossless rule at temperature 0."""
    node = torch.zeros_like(tree.tokens[:, 0])
    path = [node]
    alive = torch.ones_like(node, dtype=torch.bool)
    best = target.argmax
    for _ in range(shape.depth):
        wanted = best.gather(1, node[:, None])[:, 0]
        match = children_with(tree, node, wanted) & alive[:, None]
        alive = match.any(1)
        node = match.to(torch.uint8).argmax(1).where(alive, node)
        path.append(node.where(alive, 0))
    joined = torch.stack(path, 1)
    bonus = best.gather(1, node[:, None])[:, 0]
    return Acceptance(joined, (joined > 0).sum(1), bonus)


def follow_drawn(
    tree: TokenTree,
    target: TargetProbs,
    shape: TreeShape,
    draws: Draws,
    *,
    weights: Weights = weights_at,
    children: Children = children_with,
) -> Acceptance:
    """Accept along tokens drawn from the target: the rule for fixed sets of candidates.

    Trying one candidate after another, each accepted with the probability that the target,
    without those before, gives it, is a way of drawing a token from the target; so one draw
    does. A token that is no candidate is the bonus token: nothing was rejected, and there is
    no residual to draw it from. Ranks do not matter.

    Args:
        tree: its siblings are fixed sets, all of them.
        target: the target's distributions.
        shape: of the tree.
        draws: read ``depth + 1`` times.
        weights: what the next token is drawn from, given the nodes and which slots go on.
        children: which nodes are a node's children of a token.
    """
    node = torch.zeros_like(tree.tokens[:, 0])
    path = [node]
    alive = torch.ones_like(node, dtype=torch.bool)
    bonus = node
    raced = Law.SHARED_NOISE in tree.every_law
    for depth in range(shape.depth + 1):
        wanted = weights(target, node, alive)
        drawn = draws.race(wanted, depth)[0][:, 0] if raced else draws.categorical(wanted)
        bonus = drawn.where(alive, bonus)
        if depth < shape.depth:
            match = children(tree, node, drawn) & alive[:, None]
            alive = match.any(1)
            node = match.to(torch.uint8).argmax(1).where(alive, node)
            path.append(node.where(alive, 0))
    joined = torch.stack(path, 1)
    return Acceptance(joined, (joined > 0).sum(1), bonus)


def path_to(tree: TokenTree, node: Tensor, shape: TreeShape) -> tuple[Tensor, Tensor]:
    """Return `Acceptance.path` and `Acceptance.count` of the way from the root to a node.

    Args:
        tree: the trees.
        node: int64 ``[B]``, one node per slot, the root or below it.
        shape: of the trees.
    """
    count = tree.depths.gather(1, node[:, None])[:, 0]
    path = torch.zeros_like(tree.tokens[:, :1]).repeat(1, shape.depth + 1)
    above = tree.parents.clamp(min=0)
    for _ in range(shape.depth):
        path = path.scatter(1, tree.depths.gather(1, node[:, None]), node[:, None])
        node = above.gather(1, node[:, None])[:, 0]
    path[:, 0] = 0
    return path, count
