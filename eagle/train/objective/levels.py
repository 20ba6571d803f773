"""A draft head fed with its own predictions, level after level, at every position at once.

Drafting extrapolates: the first level sees true features only, each further one the head's own
prediction in the place of the newest feature. Laying one copy of the text per level side by side,
with a mask that says which copy an entry sees of each earlier position, does this for all
positions of a text in parallel. Knows a head's training pass, not what the states are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.plugin import TrainableHead, TrainsLevels

__all__ = [
    "FeedBack",
    "Levels",
    "States",
    "drafted_states",
    "level_mask",
    "level_states",
    "level_weights",
    "unrolled_states",
]

States = Callable[[Tensor, Tensor, Sequence[Tensor], Tensor, Tensor], Tensor]
"""A head's training pass; see `eagle.plugin.TrainableHead.train_states`."""

FeedBack = Callable[[Tensor], Tensor]
"""What is fed to the next level; see `eagle.plugin.TrainableHead.feed_back`."""


@dataclass(frozen=True)
class Levels:
    """What A levels of a batch of texts are computed from.

    Attributes:
        tokens: int64 ``[B, T]``, one ahead of the features.
        own: int64 ``[B, T]``, the features' own.
        positions: int64 ``[B, T]``.
        mask: bool ``[B, 1, E, E]``, E counting the entries of all levels; see `level_mask`.
        streams: one ``[B, T, *]`` per level, what it is fed: the true features, then what each
            level fed back, moved on by one position.
        first: entry that all levels but the first begin at; what is before is not drafted from.
    """

    tokens: Tensor
    own: Tensor
    positions: Tensor
    mask: Tensor
    streams: Sequence[Tensor]
    first: int = 0

    def below(self, newest: Tensor) -> Levels:
        """Return these and one more level, of what the last one fed back, ``[B, T, *]``."""
        moved = F.pad(newest, (0, 0, 1, -1)).to(self.streams[0].dtype)
        if len(self.streams) == 1:
            moved = moved[:, self.first :]
        return replace(self, streams=[*self.streams, moved])

    @classmethod
    @torch.no_grad()
    def fed(
        cls,
        states: States,
        feed_back: FeedBack,
        tokens: Tensor,
        own: Tensor,
        features: Tensor,
        positions: Tensor,
        visible: Tensor,
        levels: int,
        first: int = 0,
    ) -> Levels:
        """Run the head through all levels but the last, without a gradient.

        No gradient flows into a prediction that is fed back, as in HASS (arXiv 2408.15766).

        Args:
            states: the head's training pass.
            feed_back: what it makes of its states for the next level.
            tokens: int64 ``[B, T]``, one ahead of the features.
            own: int64 ``[B, T]``, the features' own.
            features: ``[B, T, F]``, true.
            positions: int64 ``[B, T]``.
            visible: bool ``[B, 1, T, T]``, who sees whom at the first level.
            levels: A.
            first: entry that all levels but the first begin at.
        """
        mask = visible if levels == 1 else level_mask(visible, levels, first)
        made = cls(tokens, own, positions, mask, [features], first)
        for _ in range(1, levels):
            made = made.below(feed_back(made.states(states)[-1]))
        return made

    def states(self, states: States) -> tuple[Tensor, ...]:
        """Run the head over all copies at once and return its states, ``[B, T, S]`` per level."""
        sizes = [stream.shape[1] for stream in self.streams]

        def copied(x: Tensor) -> Tensor:
            return torch.cat((x, x[:, self.first :].repeat(1, len(sizes) - 1)), dim=1)

        out = states(
            copied(self.tokens),
            copied(self.own),
            list(self.streams),
            copied(self.positions),
            self.mask[:, :, : sum(sizes), : sum(sizes)].contiguous(),
        )
        made: tuple[Tensor, ...] = torch.split(out, sizes, dim=1)
        return made


def level_states(
    states: States,
    feed_back: FeedBack,
    tokens: Tensor,
    own: Tensor,
    features: Tensor,
    positions: Tensor,
    visible: Tensor,
    levels: int,
    first: int = 0,
) -> tuple[Tensor, ...]:
    """Return the head's states at each drafted level.

    Entry j of level d (from 1) is what the head says after drafting d - 1 true tokens behind the
    root at position j - d + 2: its newest input is what entry j - 1 one level up fed back. The
    arguments are those of `Levels.fed`.

    Returns:
        One ``[B, T, S]`` per level, all but the first without what is before the entry *first*.
        Entries less than d - 1 from the start of a text, or from that one, mean nothing.
    """
    fed = Levels.fed(states, feed_back, tokens, own, features, positions, visible, levels, first)
    return fed.states(states)


def drafted_states(
    head: TrainableHead | TrainsLevels,
    tokens: Tensor,
    own: Tensor,
    features: Tensor,
    positions: Tensor,
    visible: Tensor,
    levels: int,
    first: int = 0,
) -> tuple[Tensor, ...]:
    """Return a head's states at each level, by the one pass or the several that it drafts with.

    Args and states are those of `level_states`; a head that drafts in one pass has whole levels.
    """
    given = (tokens, own, features, positions, visible, levels)
    if isinstance(head, TrainsLevels):
        return tuple(head.train_levels(*given))
    return level_states(head.train_states, head.feed_back, *given, first)


def unrolled_states(
    states: States,
    feed_back: FeedBack,
    tokens: Tensor,
    own: Tensor,
    features: Tensor,
    positions: Tensor,
    visible: Tensor,
    levels: int,
) -> tuple[Tensor, ...]:
    """Return what `level_states` does, with gradients also through what was fed back.

    As EAGLE-3 is trained (arXiv 2503.01840, section 3.2): a level's loss reaches the outputs that
    it was fed. Every level is a pass of its own over all copies above it.
    """
    mask = visible if levels == 1 else level_mask(visible, levels)
    made = Levels(tokens, own, positions, mask, [features])
    found = [made.states(states)[-1]]
    for _ in range(1, levels):
        made = made.below(feed_back(found[-1]))
        found.append(made.states(states)[-1])
    return tuple(found)


def level_mask(visible: Tensor, levels: int, first: int = 0) -> Tensor:
    """Return who sees whom among the copies of a text, one per level.

    An entry of level a sees the true features up to a - 1 positions back, then one entry of each
    level in between, and itself; within a text only. The mask of fewer levels is its corner.

    Args:
        visible: bool ``[B, 1, T, T]``.
        levels: A.
        first: entry that all copies but the first begin at.

    Returns:
        bool ``[B, 1, E, E]``, E being T and A - 1 times what is left from the entry *first* on.
    """
    length = visible.shape[-1]
    place = torch.arange(length, device=visible.device)
    starts = [0] + [first] * (levels - 1)
    rows = []
    for level, top in enumerate(starts):
        parts = []
        for seen, left in enumerate(starts):
            shown = visible[..., top:, left:]
            back = place[top:, None] - place[None, left:]
            if seen == 0:
                parts.append(shown & (back >= level))
            elif seen <= level:
                parts.append(shown & (back == level - seen))
            else:
                parts.append(torch.zeros_like(shown))
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)


def level_weights(weights: Tensor, positions: Tensor, entries: Tensor, levels: int) -> Tensor:
    """Return the weights of some entries at each level: none where the level means nothing.

    Args:
        weights: float32 ``[E]``, at the first level.
        positions: int64 ``[B, T]``, within each text.
        entries: int64 ``[E]`` into B * T.
        levels: A.

    Returns:
        float32 ``[A, E]``.
    """
    level = torch.arange(levels, device=weights.device)[:, None]
    return weights * (positions.flatten()[entries] >= level)
