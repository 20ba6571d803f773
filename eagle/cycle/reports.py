"""Log probabilities of what passes commit, gathered where a request asks; knows logits, no request.

They are the log-softmax of the target's own logits, before temperature, processors and filters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.kernels import top_k
from eagle.plugin import MOST_LOGPROBS

__all__ = ["Report", "Reported", "report_of"]

Reported = tuple[Tensor, Tensor, Tensor]
"""Of M tokens: their log probabilities, float32 ``[B, M]``, those of the K likeliest in their
places, ``[B, M, K]``, and which these are, int64 ``[B, M, K]``."""


@dataclass(frozen=True)
class Report:
    """What B slots' latest tokens were given by the target, at fixed addresses.

    Attributes:
        chosen: float32 ``[B, D + 1]``, log probabilities of the tokens of `Slots.outcome`.
        values: float32 ``[B, D + 1, K]``, those of the K likeliest, in falling order.
        indices: int64 ``[B, D + 1, K]``, which these are.
    """

    chosen: Tensor
    values: Tensor
    indices: Tensor

    @classmethod
    def empty(cls, slots: int, tokens: int, vocab: int, device: torch.device) -> Report:
        """Allocate for *tokens* tokens of a pass, at most."""
        shape = (slots, tokens, min(MOST_LOGPROBS, vocab))
        return cls(
            torch.zeros(shape[:2], dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
        )

    def first(self, count: int) -> Report:
        """Return the first slots, as views of these tensors."""
        return Report(self.chosen[:count], self.values[:count], self.indices[:count])

    def write(self, found: Reported) -> None:
        """Take in what was found of every slot."""
        for tensor, new in zip((self.chosen, self.values, self.indices), found, strict=True):
            tensor[:, : new.shape[1]].copy_(new)

    def write_first(self, slots: Tensor, found: Reported) -> None:
        """Take in what was found of one token ``[S, 1]`` of each of some slots ``[S]``."""
        for tensor, new in zip((self.chosen, self.values, self.indices), found, strict=True):
            tensor[:, :1].index_copy_(0, slots, new.to(tensor.dtype))


def report_of(logits: Tensor, tokens: Tensor) -> Reported:
    """Return the log probabilities of tokens and of the likeliest in their places.

    Args:
        logits: ``[B, M, V]``, the target's own.
        tokens: int64 ``[B, M]``.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    values, indices = top_k(logits, min(MOST_LOGPROBS, logits.shape[-1]))
    return (logits.gather(-1, tokens[..., None]) - total)[..., 0], values - total, indices
