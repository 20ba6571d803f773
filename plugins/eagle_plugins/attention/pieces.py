"""A packed pass attended piece by piece, by a backend that knows passes over one slot only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eagle.plugin import AttentionBackend, Scores, Step, gathered

__all__ = ["PiecesPlan"]


@dataclass(frozen=True)
class PiecesPlan:
    """What all layers of one packed pass attend by.

    Attributes:
        steps: of every piece, as a pass of its own over one slot.
        plans: the backend's, of every step.
        slots: of every piece, as the host knows it.
    """

    steps: tuple[Step, ...]
    plans: tuple[Any, ...]
    slots: tuple[int, ...]

    @classmethod
    def of(
        cls,
        backend: AttentionBackend,
        step: Step,
        query_heads: int,
        kv_heads: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> PiecesPlan:
        """Plan a packed pass; see `eagle.plugin.AttentionBackend.plan`."""
        assert step.segments is not None
        assert step.segments.pieces is not None, "such a pass is not captured (`packs_unseen`)"
        options: dict[str, Any] = {} if window is None else {"window": window}
        steps = []
        for number, (_, start, count) in enumerate(step.segments.pieces):
            own = slice(number, number + 1)
            chain = Step.chain(step.lengths[own], count, start + count)
            table = None if step.table is None else step.table[own]
            steps.append(replace(chain, table=table))
        plans = tuple(backend.plan(one, query_heads, kv_heads, dtype, **options) for one in steps)
        slots = tuple(slot for slot, _, _ in step.segments.pieces)
        return cls(tuple(steps), plans, slots)

    def attend(
        self,
        backend: AttentionBackend,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        scores: Scores | None = None,
    ) -> Tensor:
        """Attend as `eagle.plugin.AttentionBackend.attend` does, from all pieces' entries."""
        options: dict[str, Any] = {} if scores is None else {"scores": scores}
        found, first = [], 0
        for step, plan, slot in zip(self.steps, self.plans, self.slots, strict=True):
            last = first + step.rows.shape[1]
            key, value = (self._read(store, step, slot) for store in (keys, values))
            own = query[:, :, first:last]
            found.append(backend.attend(own, key, value, plan, scaling, **options))
            first = last
        return torch.cat(found, dim=1)

    @staticmethod
    def _read(store: Tensor, step: Step, slot: int) -> Tensor:
        if step.table is not None:
            return gathered(store, step)
        return store[slot : slot + 1, :, : step.span]
