"""A block behind every token of a text, side by side in one pass; knows places, not the network.

One copy of the text for each place in a block: entry t of a copy belongs to the block whose root
is so many positions back, sees the features in front of that root, and of its block what the
drafter sees there. So every root of a text is trained on, at all levels, at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks:
    """The entries of all blocks of some texts: A copies, C entries in all.

    Attributes:
        roots: bool ``[C]``, which entries are the roots' own.
        positions: int64 ``[B, C]``, rotary positions.
        mask: bool ``[B, 1, C, T + C]``: what each entry sees of T context entries, and of blocks.
        levels: which copy has which level's states, first to last.
    """

    roots: Tensor
    positions: Tensor
    mask: Tensor
    levels: tuple[int, ...]

    @classmethod
    def of(
        cls, positions: Tensor, visible: Tensor, levels: int, *, causal: bool, anchored: bool
    ) -> Blocks:
        """Return them for some texts.

        Entry t of a level is held to what follows the token at position t + 1. Where each entry
        predicts what is behind its token (*anchored*), that is its token's place, and the root of
        level d is d back; where it predicts its own token, that is one further on.

        Args:
            positions: int64 ``[B, T]``, within each text.
            visible: bool ``[B, 1, T, T]``, what is not behind an entry in its own text.
            levels: A.
            causal: whether an entry sees those before it in its block alone.
            anchored: see `BlockVariant.anchored`.
        """
        length, device = positions.shape[1], positions.device
        # How far back an entry's root is, in entries, and what its position is ahead of it.
        if anchored:
            backs, aheads = list(range(levels)), [1] * levels
        else:
            backs = [0, *range(levels)]
            aheads = [1, *[2] * levels]
        copies, place = len(backs), torch.arange(length, device=device)
        order = torch.arange(copies, device=device).repeat_interleave(length)
        root = torch.cat([place - back for back in backs])
        rows = visible.repeat(1, 1, copies, 1)
        context = rows & (place <= root[:, None])
        same = root[:, None] == root[None, :]
        if causal:
            same = same & (order[None, :] <= order[:, None])
        near = visible | visible.transpose(-1, -2)  # one text, whichever of the two is behind
        block = near.repeat(1, 1, copies, copies) & same
        return cls(
            roots=order == 0,
            positions=torch.cat([positions + ahead for ahead in aheads], dim=1),
            mask=torch.cat((context, block), dim=-1),
            levels=tuple(range(copies - levels, copies)),
        )
