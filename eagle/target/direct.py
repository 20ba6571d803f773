"""Sums over the processes of one host, whose devices read each other's memory.

NCCL takes about 15 microseconds to add up a row over two GPUs, twice a layer. Here each process
lays its part where all can read it, waits for the others' and adds all of them up, in their order,
so that all have the same. PyTorch has the kernel, and NCCL has what does not fit. It ran on three
machines of two GPUs so far, so it has to be asked for. Knows torch.distributed; knows no layer and
no model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from eagle.errors import reason

__all__ = ["ASKED", "Direct"]

ASKED = "EAGLE_DIRECT_SUMS"
"""The environment variable that asks for it, by 1."""

log = logging.getLogger("eagle.target")

# Bytes of a sum at most, by processes: each reads all of the others, NCCL only a part of each.
# Two GPUs took 7 us for 16 KiB and 11 for 416 (NCCL 19 and 22), so a mebibyte is some 16 (NCCL 26).
_MOST = {2: 1 << 20, 3: 1 << 18, 4: 1 << 18, 5: 1 << 17, 6: 1 << 17, 7: 1 << 17, 8: 1 << 17}
_ALIGNED = 16  # bytes that the kernel reads at a time
_DTYPES = (torch.bfloat16, torch.float32)  # that it knows
_TRIALS = 20


class Direct:
    """Adds up what processes have; `open` gives it where that can be done.

    Args:
        buffer: uint8, which all processes have met over: each can read all of them.
        group: the processes' name in torch.distributed.
    """

    def __init__(self, buffer: Tensor, group: str) -> None:
        self._buffer, self._group = buffer, group

    @classmethod
    def open(cls, count: int, least: Callable[[int], int]) -> Direct | None:
        """Return what adds up on this process's device, the same in all; None where NCCL has to.

        Args:
            count: processes, each with a device.
            least: the least of a number that each process has; all must call it.
        """
        if not least(_reachable(count)):
            return None
        made: Direct | None = None
        try:
            import torch.distributed._symmetric_memory as symmetric

            device = torch.device("cuda", torch.cuda.current_device())
            buffer = symmetric.empty(_MOST[count], dtype=torch.uint8, device=device)
            group = dist.group.WORLD
            assert group is not None
            symmetric.rendezvous(buffer, group)
            made = cls(buffer, group.group_name)
        except Exception as error:  # whatever drivers and versions do, NCCL does without them
            log.info("sums over processes are NCCL's: %.300s", reason(error))
        if not least(made is not None) or made is None:
            return None
        return made if least(made._right()) else None

    def fits(self, x: Tensor) -> bool:
        """Return whether a sum of such tensors can be had; the same in all processes."""
        return (
            x.dtype in _DTYPES
            and x.is_contiguous()
            and 0 < x.nbytes <= self._buffer.numel()
            and x.nbytes % _ALIGNED == 0
            and x.storage_offset() * x.itemsize % _ALIGNED == 0
        )

    def add_up(self, x: Tensor) -> None:
        """Add up a tensor that fits over all processes, in place, in each of them."""
        own = self._buffer[: x.nbytes].view(x.dtype).view(x.shape)
        # Each element is read before it is laid open, and written when all were: so in place.
        torch.ops.symm_mem.one_shot_all_reduce_copy_out(own, x, "sum", self._group, x)

    def _right(self) -> bool:
        """Hold it against NCCL; all must call it."""
        device, rank = self._buffer.device, dist.get_rank()
        same = []
        for dtype in _DTYPES:
            for size in (8, 1000, self._buffer.numel() // dtype.itemsize):
                parts = torch.arange(size, device=device).remainder(61 + rank).to(dtype)
                # Small whole numbers: any order of adding gives the same.
                wanted = parts.clone()
                dist.all_reduce(wanted)
                for _ in range(_TRIALS):  # behind each other: nobody overtakes
                    found = parts.clone()
                    self.add_up(found)
                    same.append(torch.equal(found, wanted))
        if not all(same):
            log.warning("sums over processes are NCCL's, since the devices' own are wrong here")
        return all(same)


def _reachable(count: int) -> bool:
    """Return whether this is asked for, and this process's device can read all the others."""
    if os.environ.get(ASKED) != "1":
        return False
    if count not in _MOST or os.environ.get("LOCAL_WORLD_SIZE") != str(count):
        return False
    if not torch.cuda.is_available() or torch.cuda.device_count() < count:
        return False
    if not hasattr(torch.ops.symm_mem, "one_shot_all_reduce_copy_out"):
        return False
    own = torch.cuda.current_device()
    others = (other for other in range(count) if other != own)
    return all(torch.cuda.can_device_access_peer(own, other) for other in others)
