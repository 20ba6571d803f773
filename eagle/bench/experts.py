"""What the experts of one layer cost, beside the time to read those that rows are sent to.

Knows sizes: no model is loaded, weights are random, and so is who is sent where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eagle.bench.floors import read_bandwidth
from eagle.bench.mixtures import Mixture
from eagle.bench.quartiles import Quartiles
from eagle.kernels import MAX_ROWS, mixes, mixture
from eagle.runtime import Graphs, Job
from eagle.target import experts

__all__ = ["ExpertTime", "ExpertTimes", "expert_times"]

_WEIGHTS = 192 << 20  # bytes that one row's experts have in all sets, so that none waits in a cache
_SETS = 32  # at most
_CALLS = 8  # at least, timed together: each sends its rows elsewhere

_Work = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ExpertTime:
    """The experts of some rows.

    Attributes:
        rows: M.
        read: experts that were read, on average over the calls.
        size: bytes of their weights, likewise.
        theirs: microseconds by transformers' default.
        ours: microseconds as passes of this library make it.
        ratio: of the two, round by round: above 1 where ours is quicker.
        speed: bytes that ours read in a second.
        share: of the measured bandwidth.
        launched: whether transformers' is launched anew each time, since it cannot be captured.
        kernels: whether ours are the kernels of few rows.
    """

    rows: int
    read: float
    size: float
    theirs: Quartiles
    ours: Quartiles
    ratio: Quartiles
    speed: float
    share: float
    launched: bool
    kernels: bool


@dataclass(frozen=True)
class ExpertTimes:
    """What `expert_times` measured.

    Attributes:
        mixture: of which experts.
        times: in the order of the rows asked for.
        bandwidth: read bandwidth of the device, bytes per second.
    """

    mixture: Mixture
    times: tuple[ExpertTime, ...]
    bandwidth: float


@torch.inference_mode()
def expert_times(
    mixed: Mixture,
    rows: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int = 20,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> ExpertTimes:
    """Time experts by transformers' default and as this library makes them, in turns.

    Every call sends its rows to experts of its own, evenly and independently. On CUDA, calls are
    captured and replayed as a graph where they can be, as decoders do.

    Args:
        mixed: which.
        rows: of their input, at least 1 each.
        dtype: of inputs and weights.
        device: where.
        repeats: rounds.
        progress: called with what is done, how much of it, and its total.
    """
    bandwidth = read_bandwidth(device)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device).normal_(generator=generator)

    one = 3 * mixed.hidden * mixed.inner * dtype.itemsize  # bytes of an expert
    sets = max(1, min(_SETS, -(-_WEIGHTS // (mixed.top * one))))
    weights = [
        (
            normal(mixed.experts, 2 * mixed.inner, mixed.hidden).mul_(mixed.hidden**-0.5),
            normal(mixed.experts, mixed.hidden, mixed.inner).mul_(mixed.inner**-0.5),
        )
        for _ in range(sets)
    ]
    kernels = mixes(*weights[0], mixed.top)
    times = []
    for count in rows:
        calls = []
        for number in range(max(_CALLS, sets)):
            scores = torch.rand(count, mixed.experts, generator=generator, device=device)
            shares, ids = scores.topk(mixed.top)
            calls.append((normal(count, mixed.hidden), ids, shares, *weights[number % sets]))
        read = sum(len(set(ids.flatten().tolist())) for _, ids, *_ in calls) / len(calls)
        few = kernels and count <= MAX_ROWS
        works: tuple[_Work, _Work] = (experts.grouped, mixture if few else experts.grouped)
        graphs = Graphs(device) if device.type == "cuda" else None
        jobs = [Job(partial(_all, work, calls), graphs, device, 1) for work in works]
        for _ in range(repeats):
            for job in jobs:
                job.time()
        theirs, ours = ([1e3 * ms / len(calls) for ms in job.times] for job in jobs)
        ratio = Quartiles.of(a / b for a, b in zip(theirs, ours, strict=True))
        found = Quartiles.of(ours)
        speed = 1e6 * read * one / found.median
        times.append(
            ExpertTime(
                rows=count,
                read=read,
                size=read * one,
                theirs=Quartiles.of(theirs),
                ours=found,
                ratio=ratio,
                speed=speed,
                share=speed / bandwidth,
                launched=graphs is not None and not jobs[0].captured,
                kernels=few,
            )
        )
        progress("timing experts", len(times), len(rows))
    return ExpertTimes(mixed, tuple(times), bandwidth)


def _all(work: _Work, calls: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]) -> None:
    for call in calls:
        work(*call)
