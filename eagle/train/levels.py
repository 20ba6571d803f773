"""A draft head fed with its own predictions, level after level, at every position at once.

Drafting extrapolates: the first level sees true features only, each further one the head's own
prediction in the place of the newest feature. Laying one copy of the text per level side by side,
with a mask that says which copy an entry sees of each earlier position, does this for all
positions of a text in parallel. Knows a head's training pass, not what the states are for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.roles import TrainableHead

__all__ = ["level_mask", "level_states"]


def level_states(
    head: TrainableHead,
    tokens: Tensor,
    features: Tensor,
    positions: Tensor,
    visible: Tensor,
    levels: int,
) -> list[Tensor]:
    """Return the head's states at each drafted level.

    Entry j of level d (from 1) is what the head says after drafting d - 1 true tokens behind the
    root at position j - d + 2: its newest feature is the state of entry j - 1 one level up.

    Args:
        head: the head; its states must be of the features' size.
        tokens: int64 ``[B, T]``, one ahead of the features.
        features: ``[B, T, F]``, true.
        positions: int64 ``[B, T]``.
        visible: bool ``[B, 1, T, T]``, who sees whom at the first level.
        levels: how many.

    Returns:
        One ``[B, T, F]`` per level. Entries less than d - 1 from the start of a text mean nothing.
    """
    length = tokens.shape[1]
    states = [head.train_states(tokens, features, positions, visible)]
    streams = [features]
    for level in range(2, levels + 1):
        streams.append(F.pad(states[-1], (0, 0, 1, -1)).to(features.dtype))
        out = head.train_states(
            tokens.repeat(1, level),
            torch.cat(streams, dim=1),
            positions.repeat(1, level),
            level_mask(visible, level),
        )
        states.append(out[:, -length:])
    return states


def level_mask(visible: Tensor, levels: int) -> Tensor:
    """Return who sees whom among the copies of a text, one per level.

    An entry of level a sees the true features up to a - 1 positions back, then one entry of each
    level in between, and itself; within a text only.

    Args:
        visible: bool ``[B, 1, T, T]``.
        levels: A.

    Returns:
        bool ``[B, 1, A * T, A * T]``.
    """
    length = visible.shape[-1]
    place = torch.arange(length, device=visible.device)
    back = place[:, None] - place[None, :]
    rows = []
    for level in range(levels):
        parts = [visible & (back >= level)]
        for seen in range(1, levels):
            exact = back == level - seen
            parts.append(visible & exact if seen <= level else torch.zeros_like(visible))
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)
