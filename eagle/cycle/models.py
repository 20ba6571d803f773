"""The target and the draft head over the caches of B slots: where rows lie, and a pass of each.

Knows what a pass reads and writes; knows no prompt, no tree and no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eagle.cache import BLOCK, Pages, Step
from eagle.cycle.slots import Slots
from eagle.plugin import AttentionBackend, Committed, DraftHead, FeatureExtractor, check_states
from eagle.target import Forward, Target

__all__ = ["PREFILL", "Models", "pick", "stuck"]

PREFILL = 512  # tokens of a text read in one pass: bounds the memory that logits and masks take
_SPAN = BLOCK  # spans are rounded up to this, so that few different shapes occur


class Models:
    """A target and a draft head, and the caches of both.

    Args:
        target: the target.
        features: what the head sees of it.
        head: the draft head.
        attention: the backend that the target attends through.
        headroom: rows behind the committed ones that may be written.

    Attributes:
        ahead: the target's pass compiled ahead of time, in place of its `forward`.
        compiled: what to call in place of the methods of these names, these models first.
        cache: the target's, once there are caches.
        pages: where slots' rows lie, if in blocks.
        rows: of each slot.
        state_size: S of the head.
    """

    def __init__(
        self,
        target: Target,
        features: FeatureExtractor,
        head: DraftHead,
        attention: AttentionBackend,
        headroom: int,
    ) -> None:
        self.target, self.features, self.head = target, features, head
        self.attention, self.headroom = attention, headroom
        self.ahead: Forward | None = None
        self.compiled: dict[str, Callable[..., object]] = {}

    @property
    def paged(self) -> bool:
        """Whether slots' rows lie in blocks: where the attention backend finds them there."""
        return getattr(self.attention, "paged", False)

    @property
    def shares(self) -> bool:
        """Whether slots may have blocks in common: where the head keeps nothing elsewhere."""
        return self.paged and getattr(self.head, "paged", False)

    @property
    def packs(self) -> bool:
        """Whether several prompts may be read in one pass: where backend and head know how."""
        head = getattr(self.head, "packs", getattr(self.head, "paged", False))
        return head and getattr(self.attention, "packs", False)

    @property
    def packs_unseen(self) -> bool:
        """Whether a packed pass can be captured: nothing of its pieces is asked on the host."""
        unseen = getattr(self.attention, "packs_unseen", None)
        if unseen is None or not (self.packs and self.shares):
            return False
        return bool(unseen(self.target.dtype, self.target.head_dim))

    def blocks(self, rows: int) -> int:
        """Return how many blocks a text needs that grows to *rows* committed rows."""
        return -(-(rows + self.headroom) // BLOCK)

    def tokens(self, blocks: int) -> int:
        """Return the longest text that fits into so many blocks."""
        return max(blocks * BLOCK - self.headroom, 0)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the target's keys and values, and of as much of a head's layer."""
        target = self.target
        row: int = 2 * target.kv_heads * target.head_dim * target.dtype.itemsize
        return BLOCK * row * (target.info.layers + 1)

    def make_caches(self, slots: int, rows: int, blocks: int | None) -> None:
        """Allocate caches; see `eagle.cycle.Cycle.allocate`."""
        self.state_size = self.head.state_size(self.target.info)
        self.rows = self.blocks(rows) * BLOCK
        self.pages: Pages | None = None
        if self.paged:
            self.pages = Pages.whole(slots, self.rows, self.target.device)
            if blocks is not None:
                self.pages = Pages(self.pages.table.zero_(), 1 + blocks)
        self.cache = self.target.make_cache(slots, self.rows, self.pages)
        if self.shares:
            self.head.allocate(slots, self.rows, self.pages)
        else:
            self.head.allocate(slots, self.rows)

    def assign(self, slot: int, blocks: Sequence[int]) -> None:
        """Let a slot's rows lie in some blocks, in order; behind them is what nobody reads."""
        if self.pages is not None:
            row = torch.zeros(self.pages.table.shape[1], dtype=torch.int32)
            row[: len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
            self.pages.table[slot].copy_(row, non_blocking=True)

    def move(self, slots: Slots, source: int, target: int) -> None:
        """Move a text from its slot to a free one, where its rows lie in blocks and stay there.

        The slot that it leaves idles; see `shares` for where this can be done.
        """
        assert self.pages is not None
        slots.move(source, target)
        self.pages.table[target].copy_(self.pages.table[source])
        self.assign(source, ())

    @staticmethod
    def idle(slots: Slots, slot: int) -> None:
        """Let a slot hold nothing, and take no part in what cycles commit."""
        slots.idle(slot)

    @torch.inference_mode()
    def clear(self, slots: Slots, slot: int, start: int = 0, end: int | None = None) -> None:
        """Overwrite what a text of NaN left in a slot, which idle cycles would go on from.

        A row that a mask hides takes part in a dense attention with weight zero, and zero times
        NaN is NaN. Blocks need no such thing: what is not a text's own is never read there.

        Args:
            slots: the slots.
            slot: which one.
            start: its first row that may hold NaN.
            end: behind the last one; None for all.
        """
        slots.root[slot] = 0
        slots.state[slot] = 0
        for part in slots.memory:
            part[slot] = 0
        end = self.rows if end is None else min(end, self.rows)
        if self.pages is None:
            self.cache.store.clear(slot, start, end)
        if self.shares:
            return
        # A head's rows are its own affair. What it absorbs overwrites them, and reads no others.
        target, size = self.target, self.features.feature_size(self.target.info)
        place = torch.tensor([slot], device=target.device)
        for first in range(start, end, PREFILL):
            count = min(PREFILL, end - first)
            tokens = torch.zeros(1, count, dtype=torch.int64, device=target.device)
            nothing = torch.zeros(1, count, size, dtype=target.dtype, device=target.device)
            step = Step.chain(torch.full_like(place, first), count, first + count, place)
            none = torch.zeros_like(place)  # of these entries is real
            self.absorb(Committed(tokens, tokens, nothing, none, step))

    def span(self, committed: int) -> int:
        """Return how many cache rows a cycle reads when no slot has more than *committed*."""
        return min(-(-(committed + self.headroom) // _SPAN) * _SPAN, self.rows)

    def phase(self, name: str, *args: object) -> Any:
        """Call the method of that name, compiled where it is."""
        return self.compiled.get(name, getattr(type(self), name))(self, *args)

    def forward(self, tokens: Tensor, step: Step) -> tuple[Tensor, list[Tensor]]:
        """Run the target's pass over its cache; see `eagle.target.Target.forward`."""
        forward = self.ahead or self.target.forward
        return forward(tokens, step, self.cache, self.attention, self.features.layers)

    def absorb(self, committed: Committed) -> Tensor:
        """Let the head take text in; return its states ``[B, M, S]``.

        Raises:
            Breach: they are of another size than it declared.
        """
        states = self.head.absorb(committed)
        check_states(states.shape[-1], self.state_size, "absorb")
        return states


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[b, index[b, i]]`` for ``[B, N, S]`` and ``[B, M]``: ``[B, M, S]``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def stuck(scores: Tensor) -> Tensor:
    """Return bool ``[B]``: whether some of ``[B, M, V]`` give no token a finite best score."""
    return ~scores.amax(-1).isfinite().all(1)
