"""A model's decoder layers run one by one through another function; knows modules and their hooks.

All layers of a model are the same code over other weights. So what is compiled for one of them
serves the others, where it is told nothing of their number: each is given a cache and a plan that
are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers.utils import output_capturing

__all__ = ["LayerCall", "layers_of", "one_by_one"]

LayerCall = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a layer: given the layer, its forward, and what that is called with behind the layer."""


def layers_of(body: nn.Module, count: int) -> Sequence[nn.Module]:
    """Return the decoder layers of a model, in order, or nothing where they cannot be told.

    Args:
        body: the model without its LM head.
        count: how many layers it has.
    """
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            # What somebody has put in a forward's place is not the class's code.
            return () if any("forward" in vars(layer) for layer in module) else list(module)
    return ()


@contextmanager
def one_by_one(layers: Sequence[nn.Module], call: LayerCall) -> Iterator[None]:
    """Let forwards of some layers go through a function; hooks stay around it."""
    for number, layer in enumerate(layers):
        vars(layer)["forward"] = partial(_forward, layer, number, call)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Module, number: int, call: LayerCall, *args: Any, **kwargs: Any) -> Any:
    if not {"past_key_values", "eagle_plans"} <= kwargs.keys():
        return type(layer).forward(layer, *args, **kwargs)  # it calls them otherwise
    cache, plans = kwargs["past_key_values"], kwargs["eagle_plans"]
    plan = plans[0 if len(plans) == 1 else number]
    own = kwargs | {"past_key_values": cache.of_layer(number), "eagle_plans": (plan,)}
    with _unasked():
        return call(layer, type(layer).forward, args, own)


@contextmanager
def _unasked() -> Iterator[None]:
    """Let transformers' hooks inside a layer collect nothing.

    Those that collect hidden states are on the layers themselves, around this. The others ask a
    context variable, which compilers do not follow, whether they are wanted; they are not.
    """
    collector: Any = getattr(output_capturing, "_active_collector", None)
    if getattr(collector, "compiling", True):  # there is none, or a compiler was told so
        yield
        return
    collector.compiling = True
    try:
        yield
    finally:
        collector.compiling = False
