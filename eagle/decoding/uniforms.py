"""The randomness of the next cycle, drawn and sent while the device runs the one before.

It knows requests and where a cycle reads its uniforms; it does not know what they decide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from eagle.decoding.requests import Request

__all__ = ["Feed"]


class Feed:
    """Keeps a cycle's uniforms filled with the next ones of every slot's request.

    What a request reads does not depend on when it was drawn: a slot's next uniforms stay until a
    cycle has read them, or another request has its slot.

    Args:
        uniforms: float64 ``[B, U]``, what the next cycle reads, on its device.
    """

    def __init__(self, uniforms: Tensor) -> None:
        self._uniforms = uniforms
        # In turn: two are filled for a cycle at most, and the device has read those of a cycle by
        # the time that its outcome is known, before which one more cycle may be sent.
        self._drawn = deque(
            torch.zeros(uniforms.shape, dtype=uniforms.dtype, pin_memory=uniforms.is_cuda)
            for _ in range(4)
        )
        self._owners: list[Request | None] = [None] * uniforms.shape[0]

    def fill(self, requests: Sequence[Request | None]) -> None:
        """See to it that the next cycle reads what these requests read next.

        Args:
            requests: of every slot, or of the first ones, None where it is free.
        """
        owned = enumerate(zip(requests, self._owners, strict=False))
        new = {
            slot: request for slot, (request, owner) in owned if request and request is not owner
        }
        if not new:
            return
        before, drawn = self._drawn[0], self._drawn[-1]
        count = len(requests)
        drawn[:count].copy_(before[:count])
        for slot, request in new.items():
            self._owners[slot] = request
            drawn[slot] = request.uniforms(drawn.shape[1])
        self._uniforms[:count].copy_(drawn[:count], non_blocking=True)
        self._drawn.rotate()

    def refill(self, requests: Sequence[Request | None]) -> None:
        """Draw anew, once a cycle that reads the uniforms has been started."""
        self._owners = [None] * len(self._owners)
        self.fill(requests)

    def move(self, source: int, target: int) -> None:
        """Keep what was drawn for a slot's request, which has moved to another slot."""
        self._owners[target], self._owners[source] = self._owners[source], None
        drawn = self._drawn[0]  # the latest: nobody has the row that is written
        drawn[target] = drawn[source]
