"""Moves accepted rows to the front in the caches of all layers with one kernel; knows rows only.

A move per layer, of keys and of values, is two kernels for each: a tenth of a millisecond or more
per cycle, spent on a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["Mover"]


class Mover:
    """Moves rows within stores, ``[heads, rows, size]`` each, all alike and contiguous.

    Args:
        stores: on one device; their addresses are kept, so they must outlive this.
    """

    def __init__(self, stores: Sequence[Tensor]) -> None:
        from eagle.kernels.sampling_triton import move_rows

        self._kernel, self._example = move_rows, stores[0]
        self._addresses = torch.tensor([s.data_ptr() for s in stores], device=stores[0].device)

    @staticmethod
    def serves(stores: Sequence[Tensor]) -> bool:
        """Return whether these stores can be moved in one kernel: on CUDA, with Triton."""
        return bool(stores) and stores[0].is_cuda and find_spec("triton") is not None

    def __call__(self, lengths: Tensor, path: Tensor, rows: int, table: Tensor | None) -> None:
        """Move the rows of accepted paths; see `eagle.cache.TreeCache.compact`.

        Args:
            lengths: int64 ``[slots]``.
            path: int64 ``[slots, D + 1]``.
            rows: of a slot.
            table: of `eagle.cache.Pages`; None where slots' rows lie behind each other.
        """
        heads, _, size = self._example.shape
        depth = path.shape[1] - 1
        if not depth:
            return
        # Triton launches on the current device, whichever tensors it is given.
        with torch.cuda.device_of(self._example):  # type: ignore[no-untyped-call]
            self._kernel[(len(self._addresses), path.shape[0], heads)](
                self._addresses,
                self._example,
                lengths,
                path.contiguous(),
                lengths if table is None else table,  # which is not read, but has to be something
                self._example.stride(0),
                rows,
                0 if table is None else rows // table.shape[1],
                depth,
                size,
                1 << (size - 1).bit_length(),
                num_warps=1,
            )
