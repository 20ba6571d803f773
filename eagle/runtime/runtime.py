"""How cycles are executed: eagerly, compiled, or replayed as CUDA graphs; decides nothing else.

A cycle does the same in every mode. Eager mode reads as many cache rows as the longest text has;
graphs need fixed shapes, so there rows are allocated once and prompts are padded to few lengths.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from eagle.assets import cache_dir, notify
from eagle.cache import BLOCK
from eagle.cycle import PREFILL, Cycle, Piece, Processing, Read, Slots
from eagle.errors import EagleError
from eagle.plugin import Sampling, SamplingParams, UniformDraws
from eagle.runtime.aot import ahead
from eagle.runtime.compiling import compiled_phases
from eagle.runtime.graphs import Graphs
from eagle.runtime.kernel_check import OperatorDraws, disagreement
from eagle.runtime.packing import PackedInputs, passes, size_of
from eagle.runtime.room import Room
from eagle.runtime.widths import Widths, bucket
from eagle.spec import RuntimeSpec
from eagle.target import Target

__all__ = ["FEW", "MODERATE", "PIECES", "Runtime"]

log = logging.getLogger("eagle.runtime")

_ROUND = 256  # eagerly, caches grow in steps of this many rows, so that they seldom do
_ROWS = 4096  # with graphs, they have as many rows to begin with: growing means capturing again
_AHEAD = ("cpu",)  # devices for which the target's pass is compiled ahead, and phases are not
PIECES = (32, 128, 256, 384, PREFILL)
"""Lengths of a prompt's pieces that are captured, where packed passes are not."""

# A packed pass that cannot be captured is launched by the host in 45 to 75 ms (H200, 30 and 32
# layers), in which graphs read six prompts by a 7B target, one after another.
FEW = 6
"""Pieces that are read by graphs, one after another, where packed passes are not captured."""
_TOGETHER = {"cuda": 4096, "cpu": PREFILL}  # tokens of several prompts that are read in one pass
_SMALL = 2**28  # bytes of slots that are allocated whether they are needed or not
_MANY, _MANY_ON_CPU = 256, 8  # slots at most, where their number follows the memory
MODERATE = 1024  # tokens of a text, prompt and answer, that room is made for beforehand

# Bytes of a layer's weights from which one layer is compiled for all. An H200 reads these in
# 190 us, and what ends a layer and begins the next takes some 3 us more as two kernels.
_HEAVY = 8e8


class Runtime:
    """Runs a cycle's phases, in the mode that a spec asks for.

    Args:
        cycle: the components.
        spec: what the spec says of the runtime.
        capturable: whether every component promises to read nothing on the host; see
            `eagle.runtime.check_capturable`.

    Attributes:
        graph: whether cycles are captured; it turns False where capturing fails.
        compiled: whether phases are compiled.
        room: how many blocks there is memory for.
        captured: how many graphs were captured so far.
    """

    def __init__(self, cycle: Cycle, spec: RuntimeSpec, *, capturable: bool) -> None:
        cuda = cycle.target.device.type == "cuda"
        self.cycle = cycle
        self.graph = cuda and capturable and spec.cuda_graph is not False
        ahead_of_time = cycle.target.device.type in _AHEAD
        wanted = self.graph if spec.compile == "auto" else spec.compile is not False
        self.compiled = wanted and not ahead_of_time
        self.captured = 0
        self.room = Room(cycle)
        self._told = self._asked = False
        self._graphs: Graphs | None = None
        self._inputs: _Inputs | None = None
        self._packed: PackedInputs | None = None
        self._widths = Widths()
        if self.compiled:
            # Compiled code is found again by later processes, also after a restart.
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
            layers = _by_layers(spec, cycle.target)
            cycle.compiled.update(compiled_phases(cycle, layers=layers))
        if ahead_of_time and spec.compile is not False:
            cycle.ahead = ahead(
                cycle.target,
                cycle.attention,
                cycle.features.layers,
                make=spec.compile in (True, "layers"),
            )

    def limit(self, asked: int | Literal["auto"], capacity: int) -> int:
        """Return how many requests are decoded at once, at most; see `RuntimeSpec.max_batch`."""
        if asked != "auto":
            return asked
        if self.cycle.target.device.type != "cuda":
            return _MANY_ON_CPU
        blocks = self.cycle.blocks(min(MODERATE, capacity))
        if not self.cycle.shares:
            blocks = -(-self.rows(MODERATE, capacity) // BLOCK)
        return min(max(self.room.free() // blocks, 1), _MANY)

    def slots(self, wanted: int, limit: int, rows: int) -> int:
        """Return how many slots to allocate: all, where they take little; cycles run over few.

        Args:
            wanted: as many as there are requests.
            limit: the most.
            rows: of each.
        """
        if self.cycle.shares:
            return limit  # they are a few numbers each: rows are the blocks'
        if self.lone:
            return min(wanted, limit)
        if self.graph:
            wanted = bucket(wanted)
        small = _SMALL * BLOCK // (rows * self.cycle.block_bytes)
        return min(max(wanted, small), limit)

    @property
    def lone(self) -> bool:
        """Whether one slot is better than the first of several: a pass is compiled for that."""
        return self.cycle.ahead is not None and not self.cycle.paged

    def bucket(self, slots: int) -> int:
        """Return over how many slots to run where *slots* are needed: few numbers, if captured."""
        return bucket(slots) if self.graph else slots

    def width(self, needed: int, total: int) -> int:
        """Return over how many of *total* slots the next cycle runs, of which *needed* matter."""
        if not self.graph:
            return needed
        return self._widths.choose(needed, total, one_apart=self.compiled)

    def expect(self, widths: Iterable[int]) -> None:
        """Take note that cycles over so many slots are captured, for `width` to choose them."""
        self._widths.expect(widths)

    def rows(self, longest: int, capacity: int) -> int:
        """Return how many rows to allocate for texts of some length, of at most *capacity*."""
        if not self.graph:
            return min(-(-longest // _ROUND) * _ROUND, capacity)
        rows = min(_ROWS, capacity)
        while rows < longest:
            rows = min(2 * rows, capacity)
        return -(-rows // PREFILL) * PREFILL

    def span(self, committed: int) -> int:
        """Return how many rows a cycle reads: few different numbers where each is captured."""
        # Each number would be compiled anew; and what stops at a slot's length needs no bound.
        bounded = self.graph and getattr(self.cycle.attention, "bounded", False)
        if self.compiled or bounded:
            return self.cycle.rows
        if not self.graph:
            return self.cycle.span(committed)
        return self._bucket(committed + self.cycle.headroom)

    @torch.inference_mode(False)  # what is made in that mode cannot be changed outside it
    def allocate(self, slots: int, rows: int, blocks: int | None = None) -> Slots:
        """Allocate caches and slots; what was captured for others is let go of.

        See `eagle.cycle.Cycle.allocate`.
        """
        device = self.cycle.target.device
        if self._graphs is not None and device.type == "cuda":
            torch.cuda.synchronize(device)  # a cycle of nobody may be under way
        self._graphs = self._inputs = self._packed = None
        self._widths = Widths()
        made = self.cycle.allocate(slots, rows, blocks)
        if self.graph:
            self._graphs, self._inputs = Graphs(device), _Inputs(device)
            # One request at a time is answered sooner by the other graphs: these compile nothing.
            if self.cycle.packs_unseen and slots > 1:
                self._packed = PackedInputs(device, slots)
        return made

    def run(
        self,
        slots: Slots,
        sampling: Sampling,
        committed: int,
        processing: Processing | None,
        tree: int = 0,
        *,
        reports: bool = False,
    ) -> None:
        """Run one cycle, when no slot holds more than *committed* tokens.

        Args:
            slots: the slots.
            sampling: their parameters.
            committed: tokens of the longest text.
            processing: the logits processors of the slots, if any has some.
            tree: which of the cycle's trees is drafted; each is captured by itself.
            reports: whether `slots.report` is wanted; such cycles are captured by themselves.
        """
        span = self.span(committed)
        self.cycle.use(tree)
        if processing or not self._captured(
            ("cycle", slots.root.shape[0], tree, span, sampling.greedy, sampling.filtered, reports),
            lambda: self.cycle.run(slots, sampling, span, reports=reports),
            slots,
        ):
            self.cycle.run(slots, sampling, span, processing, reports=reports)

    def ask_kernels(self, sampling: Sampling) -> None:
        """Before the first sampled token, leave out kernels that are wrong on this device.

        Where prompts are read: no slot is sampled in a cycle whose first token was not sampled.
        """
        if sampling.greedy or self._asked:
            return
        self._asked = True
        if self.cycle.draws is not UniformDraws:
            return  # an oracle, which goes through the operators anyway
        if reason := disagreement(self.cycle):
            self.cycle.draws = OperatorDraws
            log.warning("sampled cycles do without kernels, which differ here: %.300s", reason)

    @property
    def budget(self) -> int:
        """Tokens of prompts that are read in one pass, at most."""
        return _TOGETHER.get(self.cycle.target.device.type, PREFILL)

    def read(
        self,
        slots: Slots,
        pieces: Sequence[Piece[Read]],
        uniforms: Tensor,
        processing: Processing | None = None,
    ) -> None:
        """Read pieces of prompts, in one pass where backend and head can and that is faster.

        Args:
            slots: the slots.
            pieces: at most one for each slot; one by itself where there is *processing*.
            uniforms: float64 ``[S, 1]``, the randomness of the first token of each, where its
                prompt ends.
            processing: the logits processors of the piece's request, if it has some.
        """
        device = self.cycle.target.device
        if self.graph and self._packed is not None and not processing:
            for first, some in passes(pieces):
                self._read(self._packed, slots, some, uniforms[first : first + len(some)])
            return
        if len(pieces) > 1 and self.cycle.packs and not self._few(pieces):
            self._read_together(slots, pieces, uniforms)
            return
        for one, own in zip(pieces, torch.split(uniforms, 1), strict=True):
            sampling = Sampling.of([one.request.params], device)
            prompt, part = one.request.prompt, (one.start, one.end)
            self.prefill(
                slots, one.slot, prompt, sampling, own, processing, *part, reports=one.reports
            )

    def _few(self, pieces: Sequence[Piece[Read]]) -> bool:
        """Return whether pieces are read sooner by graphs, one after another, than together."""
        parts = sum(-(-(one.end - one.start) // PREFILL) for one in pieces)
        return self.graph and self._inputs is not None and parts <= FEW

    def _read(
        self, inputs: PackedInputs, slots: Slots, pieces: Sequence[Piece[Read]], uniforms: Tensor
    ) -> None:
        """Read pieces in one captured pass."""
        size = size_of(pieces)
        inputs.load(pieces, uniforms, size)
        sampling, reports = inputs.sampling, any(one.reports for one in pieces)
        self.ask_kernels(sampling)

        def read() -> None:
            self.cycle.read_packed(
                slots, inputs.packed(size), sampling, inputs.uniforms, reports=reports
            )

        key = ("read", size, sampling.greedy, sampling.filtered, reports)
        if not self._captured(key, read, slots):
            self._read_together(slots, pieces, uniforms)

    def _read_together(self, slots: Slots, pieces: Sequence[Piece[Read]], uniforms: Tensor) -> None:
        sampling = Sampling.of([one.params for one in pieces], self.cycle.target.device)
        self.ask_kernels(sampling)
        self.cycle.read_together(slots, pieces, sampling, uniforms)

    def prefill(
        self,
        slots: Slots,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
        uniform: Tensor,
        processing: Processing | None,
        start: int = 0,
        end: int | None = None,
        *,
        reports: bool = False,
    ) -> None:
        """Read a prompt into a slot and choose its first token; see `Cycle.prefill`."""
        self.ask_kernels(sampling)
        if processing or self._inputs is None or not self.graph:
            self.cycle.prefill(
                slots,
                slot,
                prompt,
                sampling,
                uniform,
                processing,
                start=start,
                end=end,
                reports=reports,
            )
            return
        inputs = self._inputs
        inputs.sampling = inputs.sampling.take(sampling)
        inputs.uniform.copy_(uniform)
        stop = len(prompt) if end is None else end
        # A graph serves every slot, so there are a dozen or so for each span, and one span for each
        # doubling of the rows. They are captured when first needed, as cycles are: that takes as
        # long as reading a few times, and other prompts of that length are to be expected.
        for first in range(start, stop, PREFILL):
            count = min(PREFILL, stop - first)
            piece = prompt[first : first + count + 1]
            length = next(size for size in PIECES if size >= count)
            last = first + count == len(prompt)
            inputs.load(piece, length, slot, first, count)
            choose = (inputs.sampling, inputs.uniform) if last else None
            span = self._bucket(first + length)
            kind = (sampling.greedy, sampling.filtered, reports) if last else ()
            key = ("read", length, span, last, *kind)

            def read(
                length: int = length,
                span: int = span,
                choose: tuple[Sampling, Tensor] | None = choose,
            ) -> None:
                tokens = inputs.tokens[:, : length + 1]
                self.cycle.read(slots, tokens, inputs.place, span, choose, reports=reports)

            if not self._captured(key, read, slots):
                read()

    def _bucket(self, rows: int) -> int:
        return min(max(_ROUND, 1 << (rows - 1).bit_length()), self.cycle.rows)

    def _captured(self, key: tuple[Any, ...], work: Callable[[], None], slots: Slots) -> bool:
        """Replay captured work, after capturing it if need be; False where that cannot be."""
        if self._graphs is None or not self.graph:
            return False
        if key not in self._graphs:
            started = time.perf_counter()
            if self.compiled and key[0] == "cycle" and not self._told:
                self._told = True
                notify("Compiling the cycle (a minute or two, once; later starts are quick) ...")
            try:
                self._graphs.capture(key, work, slots.carried)
            except EagleError:
                raise
            except Exception as error:
                # Whatever a component does that cannot be captured, it can do eagerly.
                self.graph, self._graphs = False, None
                text = " ".join(str(error).split())
                log.warning(
                    "cycles run eagerly, since they cannot be captured: %s: %.300s",
                    type(error).__name__,
                    text,
                )
                return False
            self.captured += 1
            log.info("captured %s in %.1f s", key, time.perf_counter() - started)
        self._graphs.replay(key)
        return True


def _by_layers(spec: RuntimeSpec, target: Target) -> bool:
    """Return whether one layer of a target is compiled for all of them, for one slot too."""
    if spec.compile != "auto" or not target.layers:
        return spec.compile == "layers"
    return sum(one.nbytes for one in target.layers[0].parameters()) >= _HEAVY


class _Inputs:
    """What a captured piece of a prompt reads, at fixed addresses."""

    def __init__(self, device: torch.device) -> None:
        self._numbers = torch.zeros(3 + PREFILL + 1, dtype=torch.int64, device=device)
        self.place, self.tokens = self._numbers[:3], self._numbers[None, 3:]
        self.uniform = torch.zeros(1, 1, dtype=torch.float64, device=device)
        self.sampling = Sampling.of([SamplingParams()], device)

    def load(self, piece: Sequence[int], length: int, slot: int, start: int, count: int) -> None:
        numbers = [slot, start, count, *piece, *[0] * (length + 1 - len(piece))]
        # Nobody waits until it has arrived: the piece before this one may still be read.
        self._numbers[: len(numbers)].copy_(torch.tensor(numbers), non_blocking=True)
