"""The training objective, a chunk of positions at a time; knows states and features, no text.

What is minimised is a strategy (`eagle.plugin.TrainingLoss`); levels, chunks and means are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eagle.plugin import Prediction, TrainingLoss
from eagle.train.objective.levels import FeedBack
from eagle.train.spec import LossSpec

__all__ = ["Loss", "LossValue"]

Logits = Callable[[Tensor], Tensor]
"""``[B, W, size] -> [B, W, V]`` through the frozen LM head."""

LevelLogits = Callable[[Tensor, int], Tensor]
"""The same at a level; see `eagle.plugin.TrainsLevels.level_logits`."""


@dataclass(frozen=True)
class LossValue:
    """What one batch gave, as means over the entries that count; on the device.

    Attributes:
        total: what is minimised, a scalar.
        feature: the loss's regression of features, ``[A]``: one number for each level; 0 of a loss
            that has no such term.
        token: its cross entropy between target and draft, in nats, ``[A]``, likewise.
        accuracy: share of entries where both have the same most likely token, ``[A]``.
    """

    total: Tensor
    feature: Tensor
    token: Tensor
    accuracy: Tensor

    def detached(self) -> Tensor:
        """Return all numbers in this order, float32 ``[1 + 3 A]``, without their graph."""
        parts = (self.total[None], self.feature, self.token, self.accuracy)
        return torch.cat([part.detach().float() for part in parts])


class Loss:
    """The mean of a strategy's loss over the entries that count.

    With several levels, each has this loss on entries of its own, and the total is their weighted
    mean. A vocabulary is a hundred times as wide as a state, so logits are made for one chunk of
    the entries that count at a time, and by default made again for the backward pass; the
    target's are made once for all levels.

    Args:
        spec: levels, chunk and whether to make logits again.
        objective: the strategy.
        target_logits: the target's LM head, for its own hidden states.
        draft_logits: the head's way from states to logits.
        feed_back: what the head makes of its states for the next level.
        level_logits: that way where each level has its own, in place of `draft_logits`.
        draft_vocab: int64 ``[Vd]``, the target's ids of what the head drafts from, or None.
        compiled: compile the work on a chunk.
    """

    def __init__(
        self,
        spec: LossSpec,
        objective: TrainingLoss,
        target_logits: Logits,
        draft_logits: Logits,
        feed_back: FeedBack,
        *,
        level_logits: LevelLogits | None = None,
        draft_vocab: Tensor | None = None,
        compiled: bool = False,
    ) -> None:
        self._spec, self._objective = spec, objective
        self._target_logits, self._draft_logits = target_logits, draft_logits
        self._level_logits = level_logits
        self._feed_back, self._draft_vocab = feed_back, draft_vocab
        self._terms: Any = torch.compile(self._chunk, dynamic=False) if compiled else self._chunk

    def __call__(
        self,
        states: Sequence[Tensor],
        features: Tensor,
        last: Tensor,
        entries: Tensor,
        weights: Tensor,
        counts: Tensor,
    ) -> LossValue:
        """Return the loss of a batch.

        Args:
            states: one ``[B, T, S]`` per level; entry t is for position t + 1.
            features: ``[B, T, F]``, true features.
            last: ``[B, T, H]``, the LM head's true inputs.
            entries: int64 ``[E]`` into B * T; where compiled, E is a multiple of the chunk.
            weights: float32 ``[A, E]``.
            counts: float32 ``[A]``, what the sums over entries are divided by: how many count, in
                all that one step of the optimizer sees.
        """
        # An entry is never the last of its row: the next position in memory is the one it is for.
        chosen = torch.stack([level.flatten(0, 1)[entries] for level in states])
        true, hidden = features.flatten(0, 1)[entries + 1], last.flatten(0, 1)[entries + 1]
        size = self._spec.chunk
        sums = torch.zeros(4, len(states), device=true.device)
        for start in range(0, len(entries), size):
            part = slice(start, start + size)
            args = (chosen[:, part], true[part], hidden[part], weights[:, part])
            if self._spec.recompute:
                sums = sums + checkpoint(self._terms, *args, use_reentrant=False)
            else:
                sums = sums + self._terms(*args)
        each, feature, token, accuracy = (sums / counts.clamp(min=1)).unbind()
        total = each.new_zeros(())
        for share, level in zip(self._spec.shares, each.unbind(), strict=True):
            total = total + share * level
        return LossValue(total, feature, token, accuracy)

    def _chunk(self, states: Tensor, true: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sums of loss, terms and agreement, float32 ``[4, A]``."""
        with torch.no_grad():
            target = self._target_logits(hidden[None])[0].float()
            first = target.argmax(-1)
        sums = []
        for level, (state, weight) in enumerate(zip(states, weights, strict=True)):
            if self._level_logits is None:
                draft = self._draft_logits(state[None])[0].float()
            else:
                draft = self._level_logits(state[None], level)[0].float()
            said = Prediction(level, self._feed_back(state), true, draft, target, self._draft_vocab)
            terms = self._objective(said)
            best = draft.argmax(-1)
            if self._draft_vocab is not None:
                best = self._draft_vocab[best]
            parts = [terms["loss"], terms.get("feature"), terms.get("token"), best == first]
            none = weight.new_zeros(())
            sums.append(
                torch.stack([none if p is None else (p.float() * weight).sum() for p in parts])
            )
        return torch.stack(sums, dim=1)
