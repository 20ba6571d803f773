"""Where the milliseconds of a cycle go: draft, verify, accept and commit.

Knows the seam that a cycle has for it (`Cycle.timer`); the figures come from runs of their own, so
that what is timed as a whole elsewhere is not disturbed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from eagle.cycle import PHASES
from eagle.decoding import Decoder
from eagle.plugin import SamplingParams

__all__ = ["PhaseClock", "phase_times"]

_SKIPPED = 4  # cycles at the start of an answer, in which code is compiled and graphs captured
_END = "end"
_Mark = tuple[str, Any]  # a phase, and its time in seconds or its CUDA event


class PhaseClock:
    """Notes when each phase of a cycle begins, on the device.

    On CUDA these are events in the stream. While a graph is captured they become nodes of the
    graph, which every replay records again; so a captured cycle is timed as it is.

    Args:
        device: where the cycle runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[_Mark] = []
        self._captured: list[_Mark] = []

    def __call__(self, phase: str) -> None:
        """Note that a phase begins, or, with ``end``, that the last one is over."""
        if self._device.type != "cuda":
            self._marks.append((phase, time.perf_counter()))
            return
        capturing = torch.cuda.is_current_stream_capturing()
        event: Any = torch.cuda.Event(enable_timing=True, external=capturing)  # type: ignore[no-untyped-call]
        event.record()
        if not capturing:
            self._marks.append((phase, event))
            return
        if phase == PHASES[0]:
            self._captured = []
        self._captured.append((phase, event))

    def take(self, *, replayed: bool) -> dict[str, float]:
        """Return the milliseconds of each phase of the latest cycle.

        Args:
            replayed: whether it was a captured one; the notes of eager cycles, such as the
                warm-up of a capture, are then passed over.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        marks = self._captured if replayed else self._marks
        starts = [place for place, (phase, _) in enumerate(marks) if phase == PHASES[0]]
        latest = marks[starts[-1] :] if starts else []
        self._marks = []
        return {
            phase: _milliseconds(start, end)
            for (phase, start), (_, end) in pairwise(latest)
            if phase != _END
        }


def _milliseconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return 1e3 * float(end - start)
    return float(start.elapsed_time(end))


def phase_times(
    decoder: Decoder, texts: Sequence[Sequence[int]], params: SamplingParams
) -> dict[str, float]:
    """Return the milliseconds that a cycle spends in each of `PHASES`, medians over its cycles.

    Args:
        decoder: what is timed; it is left as it was.
        texts: ids of prompts that are answered at once.
        params: for all of them.

    Returns:
        By phase; empty if the answers took no cycle.
    """
    cycle, runtime = decoder._cycle, decoder._runtime
    clock = PhaseClock(decoder.target.device)
    decoder.loop.let_go()  # with what was captured for them, which has no notes in it
    cycle.timer = clock
    samples: list[dict[str, float]] = []
    try:
        seen = decoder.loop.cycles
        for _ in decoder.stream(texts, params):
            if decoder.loop.cycles > seen:  # the first event since a cycle was started
                samples.append(clock.take(replayed=runtime.graph))
            seen = decoder.loop.cycles
    finally:
        cycle.timer = None
        decoder.loop.let_go()
    samples = [sample for sample in samples if sample]
    kept = samples[_SKIPPED:] or samples[-1:]
    if not kept:
        return {}
    return {phase: statistics.median(sample[phase] for sample in kept) for phase in PHASES}
