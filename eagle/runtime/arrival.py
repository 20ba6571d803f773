"""What the device was asked for, on its way to the host; it does not know what it says."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Arrival"]


class Arrival:
    """A copy of a tensor as what was sent to the device so far leaves it.

    Nothing waits for it but `read`, and that for no more than this: what is sent to the device
    meanwhile may go on, and change the tensor.

    Args:
        tensor: integers, few of them.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.clone()

    def read(self) -> list[list[int]]:
        """Wait for it, and return its rows."""
        if self._there is not None:
            self._there.synchronize()
        rows: list[list[int]] = self._host.tolist()
        return rows
