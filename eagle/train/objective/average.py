"""An exponential moving average of weights while they are trained; knows tensors, no head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Average"]


class Average:
    """The average of some parameters over the steps of an optimizer.

    Args:
        parameters: what is trained; the average starts as a copy of them.
        decay: how much of the average stays at each step, 0 to 1. In the first steps less does, as
            little is known then: at most (1 + n) / (10 + n) at step n.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, list(self._parameters), 1 - decay)

    def restore(self, values: Sequence[Tensor]) -> None:
        """Go on from the values of a checkpoint, or start anew where it has none."""
        for mine, value in zip(self.values, values or self._parameters, strict=True):
            mine.copy_(value.detach())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the parameters' place for a while."""
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._copy(self.values)
        try:
            yield
        finally:
            self._copy(trained)

    @torch.no_grad()
    def _copy(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
