"""How long work takes on a device, eagerly or replayed as a graph; knows nothing of the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from eagle.runtime.graphs import Graphs

__all__ = ["Job", "seconds_of"]


def seconds_of(device: torch.device, work: Callable[[], object]) -> float:
    """Do some work and return how long the device took, what it waited for the host included."""
    if device.type == "cpu":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    start, end = events
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


class Job:
    """Work that is done again and again, replayed as a graph where there are graphs.

    Args:
        work: what is done.
        graphs: where it is captured; None to launch it anew each time.
        device: where it runs.
        warm_up: how often it is done before: the second time compiles.

    Attributes:
        times: milliseconds of each `time`.
        captured: whether it is replayed.
    """

    def __init__(
        self,
        work: Callable[[], object],
        graphs: Graphs | None,
        device: torch.device,
        warm_up: int = 4,
    ) -> None:
        self.times: list[float] = []
        self._device = device
        for _ in range(warm_up):
            work()
        self._work = work
        self._kept = work  # with all that it reads, which a graph of it finds by address
        self.captured = False
        if graphs is None:
            return
        # As in the decoder's runtime: what cannot be captured is run eagerly.
        key = object()  # not this job, which would keep the graphs that keep it
        with suppress(Exception):
            graphs.capture(key, self._once)
            self._work, self.captured = partial(graphs.replay, key), True

    def _once(self) -> None:
        self._work()

    def time(self) -> None:
        """Do it once more, and note the milliseconds."""
        self.times.append(1e3 * seconds_of(self._device, self._work))
