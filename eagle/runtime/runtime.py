"""How cycles are executed: eagerly, compiled, or replayed as CUDA graphs; decides nothing else.

A cycle does the same in every mode. Eager mode reads as many cache rows as the longest text has;
graphs need fixed shapes, so there rows are allocated once and prompts are padded to few lengths.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from eagle.assets import cache_dir, notify
from eagle.cycle import PHASES, PREFILL, Cycle, Processing, Slots
from eagle.errors import EagleError, IncompatibleError
from eagle.plugin import Sampling, SamplingParams, UniformDraws
from eagle.runtime.aot import ahead
from eagle.runtime.graphs import Graphs
from eagle.runtime.kernel_check import OperatorDraws, disagreement
from eagle.spec import RuntimeSpec

__all__ = ["Runtime"]

log = logging.getLogger("eagle.runtime")

_ROUND = 256  # eagerly, caches grow in steps of this many rows, so that they seldom do
_ROWS = 4096  # with graphs, they have as many rows to begin with: growing means capturing again
_AHEAD = ("cpu",)  # devices for which the target's pass is compiled ahead, and phases are not
_PIECES = (32, 128, PREFILL)  # lengths of a prompt's pieces that are captured


class Runtime:
    """Runs a cycle's phases, in the mode that a spec asks for.

    Args:
        cycle: the components.
        spec: what the spec says of the runtime.
        capturable: whether every component promises to read nothing on the host.

    Raises:
        IncompatibleError: the spec asks for graphs where there can be none.

    Attributes:
        graph: whether cycles are captured; it turns False where capturing fails.
        compiled: whether phases are compiled.
    """

    def __init__(self, cycle: Cycle, spec: RuntimeSpec, *, capturable: bool) -> None:
        cuda = cycle.target.device.type == "cuda"
        if spec.cuda_graph is True and not cuda:
            raise IncompatibleError("runtime.cuda_graph: CUDA graphs need a CUDA device")
        if spec.cuda_graph is True and not capturable:
            raise IncompatibleError(
                "runtime.cuda_graph: a component of this spec reads the device on the host "
                "(it is not capturable), so a cycle cannot be captured"
            )
        self.cycle = cycle
        self.graph = cuda and capturable and spec.cuda_graph is not False
        ahead_of_time = cycle.target.device.type in _AHEAD
        self.compiled = self.graph if spec.compile == "auto" else spec.compile and not ahead_of_time
        self._told = self._asked = False
        self._graphs: Graphs | None = None
        self._inputs: _Inputs | None = None
        if self.compiled:
            # Compiled code is found again by later processes, also after a restart.
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
            for name in PHASES:
                cycle.compiled[name] = _Compiled(name, getattr(type(cycle), name))

        if ahead_of_time and spec.compile is not False:
            cycle.ahead = ahead(
                cycle.target,
                cycle.attention,
                cycle.features.layers,
                make=spec.compile is True,
            )

    def slots(self, wanted: int, limit: int) -> int:
        """Return how many slots to allocate: few different numbers where each is captured."""
        if not self.graph:
            return min(wanted, limit)
        return min(1 << (wanted - 1).bit_length(), limit)

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
    def allocate(self, slots: int, rows: int) -> Slots:
        """Allocate caches and slots; what was captured for others is let go of."""
        self._graphs = self._inputs = None
        made = self.cycle.allocate(slots, rows)
        if self.graph:
            self._graphs = Graphs(self.cycle.target.device)
            self._inputs = _Inputs(self.cycle.target.device)
        return made

    def run(
        self,
        slots: Slots,
        sampling: Sampling,
        committed: int,
        processing: Processing | None,
        tree: int = 0,
    ) -> None:
        """Run one cycle, when no slot holds more than *committed* tokens.

        Args:
            slots: the slots.
            sampling: their parameters.
            committed: tokens of the longest text.
            processing: the logits processors of the slots, if any has some.
            tree: which of the cycle's trees is drafted; each is captured by itself.
        """
        span = self.span(committed)
        self.cycle.use(tree)
        if processing or not self._captured(
            ("cycle", tree, span, sampling.greedy, sampling.filtered),
            lambda: self.cycle.run(slots, sampling, span),
            slots,
        ):
            self.cycle.run(slots, sampling, span, processing)

    def _ask_kernels(self) -> None:
        """Before the first sampled token, leave out kernels that are wrong on this device."""
        self._asked = True
        if self.cycle.draws is not UniformDraws:
            return  # an oracle, which goes through the operators anyway
        if reason := disagreement(self.cycle):
            self.cycle.draws = OperatorDraws
            log.warning("sampled cycles do without kernels, which differ here: %.300s", reason)

    def prefill(
        self,
        slots: Slots,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
        uniform: Tensor,
        processing: Processing | None,
    ) -> None:
        """Read a prompt into a slot and choose its first token; see `Cycle.prefill`."""
        # Here alone: no slot is sampled in a cycle whose first token was not sampled.
        if not sampling.greedy and not self._asked:
            self._ask_kernels()
        if processing or self._inputs is None or not self.graph:
            self.cycle.prefill(slots, slot, prompt, sampling, uniform, processing)
            return
        inputs = self._inputs
        inputs.sampling = inputs.sampling.take(sampling)
        inputs.uniform.copy_(uniform)
        # A graph serves every slot, so there are at most ten for each span, and one span for each
        # doubling of the rows. They are captured when first needed, as cycles are: that takes as
        # long as reading a few times, and other prompts of that length are to be expected.
        for start in range(0, len(prompt), PREFILL):
            piece = prompt[start : start + PREFILL + 1]
            count = min(len(piece), PREFILL)
            length = next(size for size in _PIECES if size >= count)
            last = start + count == len(prompt)
            inputs.load(piece, length, slot, start, count)
            end = (inputs.sampling, inputs.uniform) if last else None
            span = self._bucket(start + length)
            kind = (sampling.greedy, sampling.filtered) if last else ()
            key = ("read", length, span, last, *kind)

            def read(
                length: int = length,
                span: int = span,
                end: tuple[Sampling, Tensor] | None = end,
            ) -> None:
                tokens = inputs.tokens[:, : length + 1]
                self.cycle.read(slots, tokens, inputs.place, span, end)

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
            log.info("captured %s in %.1f s", key, time.perf_counter() - started)
        self._graphs.replay(key)
        return True


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


class _Compiled:
    """A phase that is compiled when called again, and called eagerly where that fails.

    The first call is eager, for components make there what they make only once (index tensors,
    say), which would be traced into every cycle.

    Args:
        name: of the phase.
        phase: the method, not bound: it would keep the cycle that keeps this.
    """

    def __init__(self, name: str, phase: Callable[..., Any]) -> None:
        self._name, self._phase, self._fresh = name, phase, True
        self._compiled: Callable[..., Any] = torch.compile(phase, fullgraph=True, dynamic=False)
        self._failed: set[tuple[tuple[bool, bool], ...]] = set()

    def __call__(self, cycle: Cycle, *args: Any) -> Any:
        # Sampling takes other operators than greedy decoding: one may fail without the other.
        kind = tuple((a.greedy, a.filtered) for a in args if isinstance(a, Sampling))
        if self._fresh:
            self._fresh = False
        elif kind not in self._failed:
            try:
                with _many_shapes():
                    return self._compiled(cycle, *args)
            except _failures() as error:
                self._failed.add(kind)
                reason = " ".join(str(error).split())
                log.warning("the phase %s runs uncompiled: %.300s", self._name, reason)
        return self._phase(cycle, *args)


def _failures() -> tuple[type[Exception], ...]:
    """Return what is raised where a phase cannot be compiled, or needs more than a device has."""
    found: tuple[type[Exception], ...] = (TorchDynamoException, FailOnRecompileLimitHit)
    if "triton" not in sys.modules:
        return found
    from triton.runtime.errors import OutOfResources

    return (*found, OutOfResources)


@contextmanager
def _many_shapes() -> Iterator[None]:
    """Let one phase be compiled for many shapes: the limit is meant for shapes that keep coming.

    Advice that is not for users of a decoder is left unsaid.
    """
    patched = torch._dynamo.config.patch(recompile_limit=64, accumulated_recompile_limit=1024)
    with patched, warnings.catch_warnings():
        # Products in float32 are asked for in float32, and Inductor knows when to split.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        warnings.filterwarnings("ignore", r"\s*Online softmax is disabled")
        yield
