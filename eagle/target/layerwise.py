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
            layers = list(module)
            numbered = all(
                getattr(part, "layer_idx", number) == number
                for number, layer in enumerate(layers)
                for part in layer.modules()
            )
            # What somebody has put in a forward's place is not the class's code.
            replaced = any("forward" in vars(layer) for layer in layers)
            return layers if numbered and not replaced and len(set(layers)) == count else ()
    return ()


@contextmanager
def one_by_one(layers: Sequence[nn.Module], call: LayerCall) -> Iterator[None]:
    """Let forwards of some layers go through a function; hooks stay around it."""
    with _uncollected(layers):
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
    return call(layer, type(layer).forward, args, own)


@contextmanager
def _uncollected(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Take transformers' collecting hooks off what is inside of layers.

    Those that collect hidden states are on the layers themselves, and stay. The others ask a
    context variable, which compilers do not follow, whether they are wanted; they are not.
    """
    kept = []
    for part in (part for layer in layers for part in layer.modules() if part is not layer):
        hooks = part._forward_hooks
        if any(_collects(hook) for hook in hooks.values()):
            kept.append((hooks, dict(hooks)))
            for key in [key for key, hook in hooks.items() if _collects(hook)]:
                del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _collects(hook: Any) -> bool:
    return bool(getattr(hook, "__module__", None) == output_capturing.__name__)
