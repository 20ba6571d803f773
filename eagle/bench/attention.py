"""What one layer's tree attention costs, backend by backend, beside the bytes it has to read.

Knows attention backends by themselves: no model, no decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.bench.floors import read_bandwidth
from eagle.bench.quartiles import Quartiles
from eagle.cache import Step
from eagle.errors import RequestError
from eagle.plugin import AttentionBackend, ancestor_mask
from eagle.runtime import Graphs, Job

__all__ = ["AttentionShape", "AttentionTime", "AttentionTimes", "attention_times"]

_CACHES = 128 << 20  # bytes of keys and values taken in turn, so that none waits in a GPU's L2
_CALLS = 64  # at most, timed together as one graph
_CHILDREN = 4  # of every node, as far as there are nodes


@dataclass(frozen=True)
class AttentionShape:
    """One layer's tensors.

    Attributes:
        batch: slots.
        heads: query heads.
        kv_heads: key and value heads, a divisor of *heads*.
        head_dim: size of each.
        nodes: entries of each slot that attend, a token tree.
        context: committed rows of each slot.
        rows: rows of the cache that a backend without a bound of its own reads.
    """

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    nodes: int
    context: int
    rows: int

    def check(self) -> None:
        """Raise `RequestError` where there can be no such tensors."""
        if min(vars(self).values()) < 1:
            raise RequestError("every size should be at least 1")
        if self.heads % self.kv_heads:
            raise RequestError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads")
        if self.rows < self.context + self.nodes:
            raise RequestError(
                f"{self.context} rows of context and {self.nodes} nodes need a cache of at least "
                f"{self.context + self.nodes} rows, not {self.rows}"
            )

    def live_bytes(self, itemsize: int) -> int:
        """Return the bytes of keys and values that some entry sees."""
        rows = self.context + self.nodes
        return 2 * self.batch * self.kv_heads * rows * self.head_dim * itemsize


@dataclass(frozen=True)
class AttentionTime:
    """One backend.

    Attributes:
        name: its name.
        microseconds: of one call for one layer; its plan, made once a pass, is left out.
        bandwidth: bytes that must be read, over the median time; per second.
        launched: whether calls were launched one by one on a GPU, as they cannot be captured.
    """

    name: str
    microseconds: Quartiles
    bandwidth: float
    launched: bool


@dataclass(frozen=True)
class AttentionTimes:
    """What `attention_times` measured.

    Attributes:
        times: by backend, as asked for.
        bandwidth: read bandwidth of the device in the same run, bytes per second.
    """

    times: tuple[AttentionTime, ...]
    bandwidth: float


@torch.inference_mode()
def attention_times(
    backends: Mapping[str, AttentionBackend],
    shape: AttentionShape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int = 20,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> AttentionTimes:
    """Time attention backends on the same random tensors, taking turns.

    On CUDA, calls are captured and replayed as a graph where they can be, as decoders do.

    Args:
        backends: by name.
        shape: of the tensors.
        dtype: of queries, keys and values.
        device: where.
        repeats: rounds.
        progress: called with what is done, how much of it, and its total.

    Raises:
        RequestError: the shape is impossible, or a backend cannot serve it.
    """
    shape.check()
    for name, backend in backends.items():
        if reason := backend.unsupported(device, dtype, shape.head_dim):
            raise RequestError(f"the attention backend {name!r} cannot be timed here: {reason}")
    size = shape.live_bytes(dtype.itemsize)
    sets = max(1, min(-(-_CACHES // size), _CALLS)) if device.type == "cuda" else 1
    inputs = [_inputs(shape, dtype, device, seed) for seed in range(sets)]
    step = _step(shape, device)
    works = {name: _work(backend, inputs, step, shape, dtype) for name, backend in backends.items()}
    graphs = Graphs(device) if device.type == "cuda" else None
    jobs = {name: Job(work, graphs, device, 1) for name, work in works.items()}
    for done in range(1, repeats + 1):
        for job in jobs.values():
            job.time()
        progress("timing", done, repeats)
    times = []
    for name, job in jobs.items():
        microseconds = Quartiles.of(1e3 * ms / sets for ms in job.times)
        launched = graphs is not None and not job.captured
        times.append(AttentionTime(name, microseconds, 1e6 * size / microseconds.median, launched))
    return AttentionTimes(tuple(times), read_bandwidth(device))


def _inputs(
    shape: AttentionShape, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    cache = (shape.batch, shape.kv_heads, shape.rows, shape.head_dim)
    # Models compute queries entry by entry and hand them over transposed.
    query = normal(shape.batch, shape.nodes, shape.heads, shape.head_dim).transpose(1, 2)
    return query, normal(*cache), normal(*cache)


def _step(shape: AttentionShape, device: torch.device) -> Step:
    index = torch.arange(shape.nodes, device=device)
    parents = ((index + _CHILDREN - 1) // _CHILDREN - 1).expand(shape.batch, -1)
    ancestors = ancestor_mask(parents, shape.nodes)
    lengths = torch.full((shape.batch,), shape.context, dtype=torch.int64, device=device)
    return Step.tree(lengths, ancestors.sum(2) - 1, ancestors, shape.rows)


def _work(
    backend: AttentionBackend,
    inputs: list[tuple[Tensor, Tensor, Tensor]],
    step: Step,
    shape: AttentionShape,
    dtype: torch.dtype,
) -> Callable[[], None]:
    plan = backend.plan(step, shape.heads, shape.kv_heads, dtype)

    def work() -> None:
        for query, keys, values in inputs:
            backend.attend(query, keys, values, plan, shape.head_dim**-0.5)

    return work
