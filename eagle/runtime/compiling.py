"""Phases of a cycle as compiled code: which sizes one piece of it serves, and what if it fails.

What is compiled for one slot is the whole phase, made for its sizes. Over several slots code serves
any number of them; and there, and where prompts are read together, the target's pass is compiled
for one of its decoder layers, which are all alike: in a fraction of the time that the whole takes,
in which whoever waits for an answer waits. So it may be for one slot, too, for its sizes: what ends
a layer and what begins the next are two kernels then, which weigh little in a large target.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from eagle.cycle import PHASES, Cycle
from eagle.plugin import Sampling, TokenTree, UniformDraws

__all__ = ["compiled_phases"]

log = logging.getLogger("eagle.runtime")


def compiled_phases(cycle: Cycle, *, layers: bool = False) -> dict[str, Callable[..., Any]]:
    """Return what to call in place of a cycle's phases, by their names.

    Args:
        cycle: whose phases.
        layers: whether the target's pass is compiled for a layer where one slot is decoded, too.
    """
    layer = _Layer()
    found: dict[str, Callable[..., Any]] = {
        name: _Compiled(name, getattr(type(cycle), name)) for name in PHASES if name != "verify"
    }
    found["verify"] = _Verification("verify", type(cycle).verify, layer, layers=layers)
    if cycle.paged:  # else the host looks at every piece
        found["pack"] = _Packed("pack", type(cycle).pack, layer)
    return found


class _Compiled:
    """A phase that is compiled when called again, and called eagerly where that fails.

    The first call with a tree is eager, for components make there what they make only once (index
    tensors, say), which would be traced into every cycle.

    Args:
        name: of the phase.
        phase: the method, not bound: it would keep the cycle that keeps this.
    """

    def __init__(self, name: str, phase: Callable[..., Any]) -> None:
        self._name, self._phase = name, phase
        self._met: list[object] = []
        self._compiled: Callable[..., Any] = torch.compile(phase, fullgraph=True, dynamic=False)
        self._failed: set[tuple[tuple[bool, bool], ...]] = set()

    def __call__(self, cycle: Cycle, *args: Any) -> Any:
        # Sampling takes other operators than greedy decoding: one may fail without the other.
        kind = tuple((a.greedy, a.filtered) for a in args if isinstance(a, Sampling))
        maker = self.maker(cycle)
        if not any(maker is one for one in self._met):
            self._met.append(maker)
        elif kind not in self._failed:
            try:
                with _many_shapes():
                    return self.call(cycle, args)
            except _failures() as error:
                self._failed.add(kind)
                # A packed pass that SDPA attends piece by piece is another one for all sizes.
                sizes = isinstance(error, ConstraintViolationError)
                level = logging.INFO if sizes else logging.WARNING
                told = _reason(error), ", ".join(_parts(self._name, cycle))
                log.log(level, "the phase %s runs uncompiled: %.300s (%s)", self._name, *told)
        return self._phase(cycle, *args)

    def maker(self, cycle: Cycle) -> object:
        """Return the component whose first call makes what is made only once."""
        return cycle.tree

    def call(self, cycle: Cycle, args: tuple[Any, ...]) -> Any:
        """Call the compiled code, which serves any number of slots where there are several."""
        slots = _slots(args)
        for tensor in _tensors(args) if slots > 1 else ():
            if tensor.dim() and tensor.shape[0] == slots:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._compiled(cycle, *args)


class _Verification(_Compiled):
    """The target's pass over trees: of several slots, layer by layer, for every tree.

    Args:
        name: of the phase.
        phase: the method, not bound.
        layer: calls a layer's code.
        layers: whether one slot's pass is compiled layer by layer as well.
    """

    def __init__(
        self, name: str, phase: Callable[..., Any], layer: _Layer, *, layers: bool = False
    ) -> None:
        super().__init__(name, phase)
        self._layer = layer
        self._single = _Layer(any_size=False) if layers else None

    def call(self, cycle: Cycle, args: tuple[Any, ...]) -> Any:
        """Call the whole for one slot, and for several what each layer is compiled to."""
        layer = self._single if _slots(args) == 1 else self._layer
        if layer is None:
            return super().call(cycle, args)
        if cycle.target.layers:
            with cycle.target.one_by_one(layer):
                return self._phase(cycle, *args)
        if _slots(args) == 1:
            return super().call(cycle, args)
        tree: TokenTree = args[1]
        for tensor in (tree.tokens, tree.depths, tree.ancestors):
            _loosen(tensor, range(1, tensor.dim()))
        return super().call(cycle, args)


class _Packed(_Verification):
    """A packed pass, which is compiled once for any number of tokens and prompts."""

    def maker(self, cycle: Cycle) -> object:
        """Return the attention backend: prompts are read alike, whatever tree comes next."""
        return cycle.attention

    def call(self, cycle: Cycle, args: tuple[Any, ...]) -> Any:
        """Call what each layer is compiled to, or the whole where layers cannot be told."""
        if cycle.target.layers:
            with cycle.target.one_by_one(self._layer):
                return self._phase(cycle, *args)
        tokens, follow, step, ended, sampling, uniforms, _ = args
        for tensor in (tokens, follow, step.positions):
            torch._dynamo.mark_dynamic(tensor, 1)
        few = (ended, uniforms, step.lengths, step.tail, step.segments.slots, step.table)
        filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        for tensor in (*few, *filters, step.segments.offsets, step.segments.owners):
            torch._dynamo.mark_dynamic(tensor, 0)
        return self._compiled(cycle, *args)


class _Layer:
    """Any decoder layer of a target, by the code that was compiled for the first one.

    Args:
        any_size: whether one piece of code serves any number of slots and of nodes, and any
            number of tokens of packed prompts; else there is one for each, made for it.
    """

    def __init__(self, *, any_size: bool = True) -> None:
        self._any_size = any_size
        self._compiled: Callable[..., Any] = torch.compile(_layer, fullgraph=True, dynamic=False)

    def __call__(
        self,
        layer: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        given = (args, kwargs, kwargs["past_key_values"].step)
        for tensor in _tensors(given) if self._any_size else ():
            # Of numbers that a layer computes with, the last size is the model's; of whole numbers
            # and masks, which say where and whose they are, all follow slots, nodes and blocks.
            _loosen(tensor, range(tensor.dim() - tensor.is_floating_point()))
        return self._compiled(layer, forward, args, kwargs)


def _layer(
    layer: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    return forward(layer, *args, **kwargs)


def _loosen(tensor: Tensor, sizes: range) -> None:
    """Say that code is to serve other sizes too, unless it was said; 1 is always a case apart."""
    if hasattr(tensor, "_dynamo_weak_dynamic_indices"):
        return
    for size in sizes:
        if tensor.shape[size] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, size)


def _slots(args: tuple[Any, ...]) -> int:
    """Return over how many slots a phase runs, by its first argument."""
    first = args[0]
    tensor: Tensor = first.tokens if isinstance(first, TokenTree) else first.root
    return tensor.shape[0]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument of a phase, those of its fields among them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, UniformDraws):
        yield from _tensors(vars(value))
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple):
        for one in value:
            yield from _tensors(one)


def _parts(phase: str, cycle: Cycle) -> list[str]:
    """Return what the components are that a phase runs, beside the target."""
    parts: dict[str, tuple[object, ...]] = {
        "draft": (cycle.drafting, cycle.tree),
        "accept": (cycle.acceptance,),
        "commit": (cycle.head,),
    }
    return [type(part).__name__ for part in parts.get(phase, (cycle.attention,))]


def _reason(error: Exception) -> str:
    """Return what an error says, and where in the compiler it was raised if it says nothing."""
    inner = getattr(error, "inner_exception", None) or error
    text = " ".join(str(inner).split()).partition("Set TORCHDYNAMO_VERBOSE")[0].strip()
    if text.removesuffix(":") not in ("", type(inner).__name__):
        return text
    frames = traceback.extract_tb(inner.__traceback__)
    where = [frame for frame in frames if "torch" in Path(frame.filename).parts] or frames
    if not where:
        return type(inner).__name__
    file = Path(where[-1].filename)
    return f"{type(inner).__name__} in {where[-1].name} of {file.name}, line {where[-1].lineno}"


def _failures() -> tuple[type[Exception], ...]:
    """Return what is raised where a phase cannot be compiled, or needs more than a device has."""
    found: tuple[type[Exception], ...] = (
        TorchDynamoException,
        FailOnRecompileLimitHit,
        ConstraintViolationError,
    )
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
