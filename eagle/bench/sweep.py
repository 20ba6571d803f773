"""What one verification costs against the number of its nodes, beside the time to read it all.

Knows how to run a decoder's own verification on trees of any size; drafts and accepts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from eagle.bench.floors import cache_bytes, read_bandwidth, weight_bytes
from eagle.bench.quartiles import Quartiles
from eagle.decoding import Decoder
from eagle.errors import RequestError
from eagle.plugin import Sampling, SamplingParams
from eagle.runtime import Graphs, Job
from eagle.sizing import bushy_tree
from eagle.target import Target

__all__ = ["PassTime", "Sweep", "sweep_passes"]


@dataclass(frozen=True)
class PassTime:
    """One number of nodes.

    Attributes:
        nodes: N of each slot, the root included.
        verify: milliseconds of the target's pass over all slots' nodes, the LM head included.
        readout: milliseconds of the LM head over as many rows, alone.
        floor: milliseconds that reading the weights, and all slots' keys and values, takes at the
            measured bandwidth.
    """

    nodes: int
    verify: Quartiles
    readout: Quartiles
    floor: float

    @property
    def over_floor(self) -> float:
        """How many times the floor a verification takes."""
        return self.verify.median / self.floor


@dataclass(frozen=True)
class Sweep:
    """What `sweep_passes` measured.

    Attributes:
        passes: by number of nodes, as asked for.
        batch: slots.
        context: committed tokens of each slot.
        rows: cache rows of a slot that a pass may read, those behind the committed ones included.
        graph: whether verifications were replayed as CUDA graphs; else they were launched anew.
        bandwidth: read bandwidth of the device, bytes per second.
    """

    passes: tuple[PassTime, ...]
    batch: int
    context: int
    rows: int
    graph: bool
    bandwidth: float


@torch.inference_mode()
def sweep_passes(
    decoder: Decoder,
    nodes: Sequence[int],
    *,
    context: int = 512,
    batch: int = 1,
    repeats: int = 20,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Sweep:
    """Time a decoder's verification for each number of nodes, taking turns.

    It is the pass that the decoder's cycles run, in the same mode: eager, compiled or captured.

    Args:
        decoder: whose target and attention backend are used; its slots are allocated anew.
        nodes: numbers of nodes, at least 1 each.
        context: committed tokens of each slot, of random text.
        batch: slots.
        repeats: rounds.
        progress: called with what is done, how much of it, and its total.

    Raises:
        RequestError: context and nodes do not fit into what the decoder holds.
    """
    runtime, cycle, target = decoder._runtime, decoder._cycle, decoder.target
    longest = context + max(nodes)
    if min(*nodes, context) < 1 or longest > decoder.capacity:
        raise RequestError(
            f"nodes and context should be at least 1, and {longest} together at most "
            f"{decoder.capacity}, which this decoder holds"
        )
    device = target.device
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(target.embeddings, (longest,), generator=generator)
    decoder.loop.let_go()
    count = cycle.blocks(longest)  # no more than what is read: every slot's rows would be too many
    slots = runtime.allocate(batch, runtime.rows(longest, decoder.capacity), batch * count)
    first = torch.zeros(1, 1, dtype=torch.float64, device=device)
    sampling = Sampling.of([SamplingParams()], device)
    for slot in range(batch):
        cycle.assign(slot, range(1 + slot * count, 1 + (slot + 1) * count))
        runtime.prefill(slots, slot, text[:context].tolist(), sampling, first, None)
    span = runtime.span(max(longest - cycle.headroom, context))

    graphs = Graphs(device) if runtime.graph else None
    verifications, readouts = [], []
    for count in nodes:
        tree = bushy_tree(text[context : context + count].to(device), batch)
        shape = batch, count, target.info.hidden_size
        features = torch.randn(shape, device=device).to(target.dtype)
        verifications.append(Job(partial(cycle.phase, "verify", slots, tree, span), graphs, device))
        readouts.append(Job(partial(target.logits, features), graphs, device))
        progress("warming up", len(readouts), len(nodes))
    for done in range(repeats):
        for job in (*verifications, *readouts):
            job.time()
        progress("timing", done + 1, repeats)
    decoder.loop.let_go()

    bandwidth = read_bandwidth(device)
    passes = tuple(
        PassTime(
            count,
            Quartiles.of(verification.times),
            Quartiles.of(readout.times),
            1e3 * _bytes(target, batch, count, context) / bandwidth,
        )
        for count, verification, readout in zip(nodes, verifications, readouts, strict=True)
    )
    graph = all(verification.captured for verification in verifications)
    return Sweep(passes, batch, context, span, graph, bandwidth)


def _bytes(target: Target, batch: int, nodes: int, context: int) -> float:
    """Return what a verification reads at least."""
    return weight_bytes(target, batch * nodes) + cache_bytes(target, batch * (context + nodes))
