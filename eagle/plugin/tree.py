"""The token tree that a cycle drafts and verifies; knows tensors, not who drafted them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagle.plugin.laws import Law

__all__ = ["Acceptance", "Law", "TokenTree", "TreeShape", "ancestor_mask"]


@dataclass(frozen=True)
class TreeShape:
    """The sizes of every tree that a builder makes, known before anything is allocated.

    They are fixed where the builder's work can be captured; else `nodes` are the most there are.

    Attributes:
        nodes: N, nodes of the tree, the root included.
        depth: D, drafted levels; 0 for a tree that is its root alone.
        siblings: K, the most children that one node has.
        expansions: E, drafted nodes that the head is asked to extend (the root is not counted:
            its continuation is ready when a cycle begins).
        distributions: draft distributions that a sampled tree carries, the root's included;
            0 where siblings are never sampled.
    """

    nodes: int
    depth: int
    siblings: int
    expansions: int
    distributions: int = 0


@dataclass(frozen=True)
class TokenTree:
    """Candidates of one cycle for B slots, N nodes each, root first, parents before children.

    Attributes:
        tokens: int64 ``[B, N]``; column 0 is the root, the last committed token.
        parents: int64 ``[B, N]``; index of the parent node. -1 for the root, and for *padding*:
            a node with parent -1 other than the root is never accepted.
        depths: int64 ``[B, N]``; 0 for the root. A node's position is committed length + depth.
        ranks: int64 ``[B, N]``; order among siblings, from 0, in which they were drawn and are
            tried. Siblings have distinct ranks.
        ancestors: bool ``[B, N, N]``; entry (i, j) says that node i sees node j: j is i itself
            or one of its ancestors.
        draft_probs: float ``[B, Q, Vd]`` or None; under a sampled law, the distributions that
            children were drawn from. Vd is V, unless there is a `draft_vocab`.
        draft_rows: int64 ``[B, N]`` or None; the row of `draft_probs` that the children of a
            node were drawn from. Meaningless for leaves.
        sampled: bool ``[B]`` or None; whether the siblings of a slot were sampled. Where False
            (always at temperature 0) they are a fixed top-k set. None: False everywhere.
        law: how the siblings of the slots in `sampled` were drawn; known on the host.
        laws: where siblings of different nodes came about differently, all their laws, in place
            of `law`; known on the host.
        node_laws: int64 ``[B, N]`` or None; with `laws`, which of them the children of a node came
            about by. Meaningless for leaves.
        draft_vocab: int64 ``[Vd]`` or None; what the head drafts from, as ids of the target, where
            that is not the target's whole vocabulary. `tokens` are the target's all the same.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    ranks: Tensor
    ancestors: Tensor
    draft_probs: Tensor | None = None
    draft_rows: Tensor | None = None
    sampled: Tensor | None = None
    law: Law = field(default_factory=lambda: Law.TOP_K)  # compilers follow no other default
    laws: tuple[Law, ...] = ()
    node_laws: Tensor | None = None
    draft_vocab: Tensor | None = None

    @property
    def every_law(self) -> tuple[Law, ...]:
        """The laws of all its siblings."""
        return self.laws or (self.law,)

    def by_law(self, nodes: Tensor, of: Callable[[Law], Tensor]) -> Tensor:
        """Return what follows from the law of the children of one node per slot.

        Args:
            nodes: int64 ``[B]``, a node of each slot.
            of: makes ``[B, ...]`` of a law; it is called for each of them.
        """
        first, *others = self.every_law
        found = of(first)
        if self.node_laws is None:
            return found
        own = self.node_laws.gather(1, nodes[:, None]).view(-1, *[1] * (found.dim() - 1))
        for number, law in enumerate(others, start=1):
            found = torch.where(own == number, of(law), found)
        return found

    def drafts_at(self, nodes: Tensor) -> Tensor | None:
        """Return what the children of one node per slot were drawn from, ``[B, Vd]``, if drawn.

        Args:
            nodes: int64 ``[B]``, a node of each slot; of a leaf the answer means nothing.
        """
        if self.draft_probs is None or self.draft_rows is None or self.sampled is None:
            return None
        _, rows, vocab = self.draft_probs.shape
        # A leaf's row is meaningless, hence the clamp.
        row = self.draft_rows.gather(1, nodes[:, None]).clamp(0, rows - 1)
        return self.draft_probs.gather(1, row[..., None].expand(-1, 1, vocab))[:, 0]

    def widened(self, drafts: Tensor, vocab: int) -> Tensor:
        """Return draft distributions ``[B, Vd]`` over the target's vocabulary, ``[B, vocab]``."""
        if self.draft_vocab is None:
            return drafts
        return drafts.new_zeros(drafts.shape[0], vocab).index_copy(1, self.draft_vocab, drafts)

    def child(self, nodes: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the child of given rank of one node per slot.

        Args:
            nodes: int64 ``[B]``, a node of each slot.
            rank: which child.

        Returns:
            ``(index, exists)``, int64 ``[B]`` and bool ``[B]``; the index is 0 where there is none.
        """
        match = (self.parents == nodes[:, None]) & (self.ranks == rank)
        return match.to(torch.uint8).argmax(1), match.any(1)


@dataclass(frozen=True)
class Acceptance:
    """What an acceptance rule decided for each slot.

    Attributes:
        path: int64 ``[B, D + 1]``; accepted nodes from the root (always first) downwards, 0 from
            `count` + 1 on.
        count: int64 ``[B]``; accepted draft tokens, 0 to D, the root not counted.
        bonus: int64 ``[B]``; the bonus token, which follows the last accepted node.
    """

    path: Tensor
    count: Tensor
    bonus: Tensor


def ancestor_mask(parents: Tensor, depth: int) -> Tensor:
    """Return who sees whom in a tree, from its parent pointers.

    Args:
        parents: int64 ``[..., N]``, -1 for nodes without a parent.
        depth: the largest depth of a node, or more.

    Returns:
        bool ``[..., N, N]``, entry (i, j) True where j is i or an ancestor of i.

    >>> ancestor_mask(torch.tensor([-1, 0, 0, 1, 3]), 3).int().tolist()
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    """
    nodes = torch.arange(parents.shape[-1], device=parents.device)
    # Who has no parent stands above itself, so that climbing from there leads nowhere else.
    above = parents.where(parents >= 0, nodes)
    mask = (nodes[:, None] == nodes) | (above[..., None] == nodes)
    climbed = 1
    while climbed < depth:
        # What an ancestor sees, its descendant sees: each round doubles how far up that is.
        mask = mask | mask.gather(-2, above[..., None].expand(mask.shape))
        above = above.gather(-1, above)
        climbed *= 2
    return mask
