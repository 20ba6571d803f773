"""The training objective, a chunk of positions at a time; knows states and features, no text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eagle.train.config import LossSpec

__all__ = ["Loss", "LossValue"]

Logits = Callable[[Tensor], Tensor]
"""``[B, W, size] -> [B, W, V]`` through the frozen LM head."""


@dataclass(frozen=True)
class LossValue:
    """What one batch gave, as means over the entries that count; scalars on the device.

    Attributes:
        total: what is minimised.
        feature: SmoothL1 between predicted and true features, mean over their elements.
        token: cross entropy between the distributions that follow from them, in nats.
        accuracy: share of entries where both have the same most likely token.
    """

    total: Tensor
    feature: Tensor
    token: Tensor
    accuracy: Tensor

    def detached(self) -> Tensor:
        """Return the four numbers, float32 ``[4]``, without their graph."""
        parts = (self.total, self.feature, self.token, self.accuracy)
        return torch.stack([part.detach().float() for part in parts])


class Loss:
    """``feature * SmoothL1(f̂, f) + token * CE(softmax(LMhead f), softmax(LMhead f̂))``.

    Equation and weights: arXiv 2401.15077, section 3.2. A vocabulary is a hundred times as wide as
    a state, so logits are made for one chunk of the entries that count at a time, and by default
    made again for the backward pass.

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
        states: Tensor,
        features: Tensor,
        last: Tensor,
        entries: Tensor,
        weights: Tensor,
        count: int,
    ) -> LossValue:
        """Return the loss of a batch.

        Args:
            states: ``[B, T, S]``, what the head predicts; entry t is for position t + 1.
            features: ``[B, T, F]``, true features; they must be of the states' size if the
                regression loss has a weight.
            last: ``[B, T, H]``, the LM head's true inputs.
            entries: int64 ``[E]`` into B * T; where compiled, E is a multiple of the chunk.
            weights: float32 ``[E]``.
            count: how many weights are not 0.
        """
        # An entry is never the last of its row: the next position in memory is the one it is for.
        chosen = states.flatten(0, 1)[entries]
        true, hidden = features.flatten(0, 1)[entries + 1], last.flatten(0, 1)[entries + 1]
        size = self._spec.chunk
        sums = torch.zeros(3, device=states.device)
        for part in range(0, len(entries), size):
            args = [tensor[part : part + size] for tensor in (chosen, true, hidden, weights)]
            if self._spec.recompute:
                sums = sums + checkpoint(self._terms, *args, use_reentrant=False)
            else:
                sums = sums + self._terms(*args)
        feature, token, accuracy = (sums / max(count, 1)).unbind()
        total = self._spec.feature * feature + self._spec.token * token
        return LossValue(total, feature, token, accuracy)

    def _chunk(self, states: Tensor, true: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sums of both losses and of agreement, float32 ``[3]``."""
        feature = weights.new_zeros(())
        if self._spec.feature:
            distance = F.smooth_l1_loss(states.float(), true.float(), reduction="none").mean(-1)
            feature = (distance * weights).sum()
        with torch.no_grad():
            target = self._target_logits(hidden[None])[0].float()
            target_probs = target.softmax(-1)
        draft = self._draft_logits(states[None])[0].float()
        token = -(target_probs * draft.log_softmax(-1)).sum(-1)
        agree = (target.argmax(-1) == draft.argmax(-1)).float()
        return torch.stack((feature, (token * weights).sum(), (agree * weights).sum()))
