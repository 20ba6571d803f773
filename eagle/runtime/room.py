"""How many blocks of rows there is memory for; allocates none, and knows no text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eagle.cycle import Cycle
from eagle.host import free_memory

__all__ = ["Room"]

_LEAST = 64  # blocks
_SHARE = 0.8  # of the free memory, that blocks may take


class Room:
    """Blocks for the texts of a cycle's slots, as far as the device's memory goes.

    Args:
        cycle: whose caches have the blocks. Made while all processes that hold its target are
            here, since they are asked once what each has free.
    """

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._wished = 0  # blocks that were asked for, when there was memory for no more
        self._at_first = self.free() if self._bounded and cycle.target.together is not None else 0

    @property
    def _bounded(self) -> bool:
        return self._cycle.target.device.type == "cuda"

    def free(self) -> int:
        """Return how many blocks there is free memory for."""
        target = self._cycle.target
        room = int(_SHARE * free_memory(target.device)) // self._cycle.block_bytes
        # Processes that hold a target together seat the same texts.
        return room if target.together is None else target.together.least(room)

    def blocks(self, wanted: Sequence[int], slots: int) -> int:
        """Return how many blocks to allocate for texts, where rows lie in blocks.

        As many as the largest of them need that there are slots for, as far as there is memory;
        the largest of all, at least. Rounded up, so that other texts of about that length fit, and
        no fewer than leave room for the earlier turns of a chat.

        Args:
            wanted: blocks of each text (see `eagle.cycle.Cycle.blocks`).
            slots: how many are decoded at once.
        """
        needed = max(_rounded(sum(sorted(wanted)[-slots:])), _LEAST)
        self._wished = needed
        if self._bounded:
            torch.cuda.empty_cache()  # what was let go of before is free
            needed = min(needed, self.free())
        return max(needed, max(wanted))

    def most_blocks(self, total: int) -> int | None:
        """Return how many blocks there can be at most, where *total* are; None if unbounded."""
        if not self._bounded:
            return None
        if self._cycle.target.together is not None:
            return max(total, self._at_first)  # what is free now, others would have to be asked
        return total + self.free()

    def holds(self, total: int, wanted: Sequence[int], slots: int) -> bool:
        """Return whether *total* blocks suffice for texts, or are all that there is memory for."""
        needed = sum(sorted(wanted)[-slots:])
        return max(wanted, default=0) <= total and needed <= max(total, self._wished)


def _rounded(blocks: int) -> int:
    """Return a number of blocks, up to an eighth more: few different ones."""
    step = 1 << max(blocks.bit_length() - 4, 0)
    return -(-blocks // step) * step
