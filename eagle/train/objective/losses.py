"""The training objective, a chunk of positions at a time; knows states and features, no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eagle.train.spec import LossSpec

__all__ = ["Loss", "LossValue"]

Logits = Callable[[Tensor], Tensor]
"""``[B, W, size] -> [B, W, V]`` through the frozen LM head."""


@dataclass(frozen=True)
class LossValue:
    """What one batch gave, as means over the entries that count; on the device.

    Attributes:
        total: what is minimised, a scalar.
        feature: SmoothL1 between predicted and true features, mean over their elements, ``[A]``:
            one number for each level.
        token: cross entropy between the distributions that follow from them, in nats, ``[A]``.
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
    """``feature * SmoothL1(f̂, f) + token * CE(softmax(LMhead f), softmax(LMhead f̂))``.

    Equation and weights: arXiv 2401.15077, section 3.2. With several levels, each has this loss on
    entries of its own, and the total is their weighted mean. A vocabulary is a hundred times as
    wide as a state, so logits are made for one chunk of the entries that count at a time, and by
    default made again for the backward pass; the target's are made once for all levels.

    Args:
        spec: weights, chunk and whether to make logits again.
        target_logits: the target's LM head, for its own hidden states.
        draft_logits: the head's way from states to logits.
        compiled: compile the work on a chunk.
    """

    def __init__(
        self,
        spec: LossSpec,
        target_logits: Logits,
        draft_logits: Logits,
        *,
        compiled: bool = False,
    ) -> None:
        self._spec = spec
        self._target_logits, self._draft_logits = target_logits, draft_logits
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
            states: one ``[B, T, S]`` per level, what the head predicts; entry t is for position
                t + 1. A state's first F numbers are the feature that it predicts.
            features: ``[B, T, F]``, true features; states are at least as wide if the regression
                loss has a weight.
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
        feature, token, accuracy, best = (sums / counts.clamp(min=1)).unbind()
        each = self._spec.feature * feature + self._spec.token * token
        if self._spec.top_k:
            each = each + self._spec.top_k_weight * best
        total = each.new_zeros(())
        for share, level in zip(self._spec.shares, each.unbind(), strict=True):
            total = total + share * level
        return LossValue(total, feature, token, accuracy)

    def _chunk(self, states: Tensor, true: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sums of the losses and of agreement, float32 ``[4, A]``."""
        with torch.no_grad():
            target = self._target_logits(hidden[None])[0].float()
            probs, first = target.softmax(-1), target.argmax(-1)
            best = probs.topk(self._spec.top_k) if self._spec.top_k else None
        sums = []
        for state, weight in zip(states, weights, strict=True):
            feature = top = weight.new_zeros(())
            if self._spec.feature:
                predicted = state[:, : true.shape[1]].float()
                distance = F.smooth_l1_loss(predicted, true.float(), reduction="none").mean(-1)
                feature = (distance * weight).sum()
            draft = self._draft_logits(state[None])[0].float()
            logs = draft.log_softmax(-1)
            token = -(probs * logs).sum(-1)
            agree = (draft.argmax(-1) == first).float()
            if best:
                top = -((best.values * logs.gather(-1, best.indices)).sum(-1) * weight).sum()
            sums.append(torch.stack((feature, (token * weight).sum(), (agree * weight).sum(), top)))
        return torch.stack(sums, dim=1)
