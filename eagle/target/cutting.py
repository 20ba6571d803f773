"""Layers that are cut over processes, as plain layers of the part that this process has.

transformers cuts weights by a plan of the model, and wraps the layers' forwards so that parts are
added up or put side by side behind them. Here the same parts are plain weights of plain layers,
with a hook behind those whose parts have to come together. So what fuses, compiles and captures
sees what it sees in a target that is whole. The network of a draft head is cut likewise, by the
plans of its modules. Knows linear layers and the plan's words for them; knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eagle.errors import TargetError
from eagle.target.together import Together

__all__ = ["bring_together", "cut", "cut_network", "is_parted", "settle", "weighed", "whole"]

_ROWS, _COLUMNS = 0, 1  # dimension of a weight that is cut
_CUT = {"colwise": _ROWS, "rowwise": _COLUMNS, "colwise_gather_output": _ROWS, "colwise_rep": _ROWS}
_SIDE_BY_SIDE = ("colwise_gather_output", "colwise_rep")  # whose outputs are wanted whole
_DONE = "_eagle_together"
_DIMENSION = "_eagle_cut"
_PARTED = "_eagle_parted"


@torch.library.custom_op("eagle::add_up", mutates_args=("x",))
def add_up(x: Tensor) -> None:
    """Add up a tensor over all processes, in place, in each of them."""
    joined = Together.joined()
    direct = None if joined is None else joined.direct
    if direct is not None and direct.fits(x):
        direct.add_up(x)
    else:
        dist.all_reduce(x)


@add_up.register_fake
def _(x: Tensor) -> None:
    return None


@torch.library.custom_op("eagle::side_by_side", mutates_args=())
def side_by_side(x: Tensor) -> Tensor:
    """Return ``[..., P * N]``, what all P processes have of ``[..., N]``, in their order."""
    x = x.contiguous()
    parts = x.new_empty(dist.get_world_size(), *x.shape)
    dist.all_gather_into_tensor(parts.flatten(0, 1), x)  # gloo wants them behind each other
    return parts.movedim(0, -2).reshape(*x.shape[:-1], -1)


@side_by_side.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], dist.get_world_size() * x.shape[-1])


def cut(model: Any, rank: int, count: int) -> None:
    """Cut a model that has no weights yet, by its own plan.

    Args:
        model: on the meta device.
        rank: of this process.
        count: of all.

    Raises:
        TargetError: its plan cuts more than linear layers, or into unequal parts.
    """
    modules = dict(model.named_modules())
    plan = {
        name: style
        for name, style in _planned(model).items()
        if not isinstance(modules[name], nn.Embedding)  # each has all of it: few rows are read
    }
    odd = sorted({style for name, style in plan.items() if not _fits(modules[name], style, count)})
    if odd or not plan:
        raise TargetError(
            f"target.tp_plan: {type(model).__name__} cannot be made in {count} parts "
            f"({', '.join(odd) or 'it has no plan'}); only linear layers of which each process "
            "has as much can"
        )
    for name, style in plan.items():
        _become(modules[name], *_part(modules[name], style, rank, count), style)
    model._tp_size = count


@torch.inference_mode(False)  # weights made in that mode could not be used outside it
def cut_network(network: nn.Module, rank: int, count: int, least: int = 0) -> dict[str, str]:
    """Cut the network of a draft head, whose weights are there, by the plans of its modules.

    Those modules have a ``tp_plan(count)``, the styles of the linear layers that are their own, or
    nothing where they are not to be cut; and ``divide(count)``, called once they are cut. See
    `eagle.plugin.LlamaAttention`. A plan is one of the forward that it is declared with: where a
    subclass has another one and no plan, all of the network stays whole. A module is cut once,
    whoever asks for it again, and by whatever it is found.

    Args:
        network: frozen.
        rank: of this process.
        count: of all.
        least: bytes of weights that are worth it; it stays whole where fewer would be cut.

    Returns:
        The style of each layer that was cut, by its name in the network, for `bring_together`.
    """
    # A model of transformers has a property of that name.
    planned = {n: m for n, m in network.named_modules() if callable(getattr(m, "tp_plan", None))}
    if getattr(network, _DONE, False) or not all(map(_is_of_its_forward, planned.values())):
        return {}
    plans = ((name, m, m.tp_plan(count)) for name, m in planned.items() if _PARTED not in vars(m))
    parts = {
        name: (module, plan)
        for name, module, plan in plans
        if plan and all(_fits(getattr(module, own), style, count) for own, style in plan.items())
    }
    layers = [getattr(module, own) for module, plan in parts.values() for own in plan]
    if sum(layer.weight.nbytes for layer in layers) < least:
        return {}
    made = {}
    for name, (module, plan) in parts.items():
        for own, style in plan.items():
            layer = getattr(module, own)
            weight, bias = _part(layer, style, rank, count)
            # Copied, so that the whole of it is freed.
            _become(layer, weight.clone(), None if bias is None else bias.clone(), style)
            made[f"{name}.{own}" if name else own] = style
        module.divide(count)
        vars(module)[_PARTED] = True
    return made


def is_parted(network: nn.Module) -> bool:
    """Whether `cut_network` left this process a part of a network only."""
    return any(_PARTED in vars(module) for module in network.modules())


def weighed(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what tells a network from another: by name, the sizes of a weight and its bytes' sum.

    Of weights that are no plain tensors, which may be kept in any way, the sizes alone.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, weight in network.named_parameters():
        found[name] = {"sizes": list(weight.shape)}
        if type(weight) is nn.Parameter and not weight.is_meta:
            content = weight.detach().flatten().view(torch.uint8)
            found[name]["content"] = int(content.sum(dtype=torch.int64))
    return found


def settle(model: Any) -> bool:
    """Make plain layers of those that transformers has cut, in place.

    Args:
        model: frozen, as transformers has loaded it for several processes.

    Returns:
        Whether that were all that it has cut.
    """
    from torch.distributed.tensor import DTensor

    modules = dict(model.named_modules())
    for name, style in _planned(model).items():
        layer = modules[name]
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Embedding) and isinstance(weight, DTensor):
            del layer.forward
            layer.weight = nn.Parameter(weight.full_tensor().detach(), requires_grad=False)
            continue
        if not isinstance(weight, DTensor) or not _fits(layer, style, weight.device_mesh.size()):
            continue
        bias = layer.bias.to_local() if isinstance(layer.bias, DTensor) else layer.bias
        del layer.forward  # what transformers put in the class's place
        _become(layer, weight.to_local(), bias, style)
    cut_still = any(isinstance(weight, DTensor) for weight in model.parameters())
    return not cut_still and not any("forward" in vars(layer) for layer in modules.values())


def bring_together(model: Any, plan: Mapping[str, str] | None = None) -> None:
    """Have parts added up, or put side by side, behind the layers that are cut.

    Last of all: whoever exchanges layers for quicker ones leaves those alone that have hooks.

    Args:
        model: that `cut` or `settle` made, or `cut_network`.
        plan: of `cut_network`; a model of transformers has its own.
    """
    if getattr(model, _DONE, False):
        return  # it has another owner
    setattr(model, _DONE, True)
    modules = dict(model.named_modules())
    for name, style in (_planned(model) if plan is None else plan).items():
        layer = modules[name]
        if "forward" in vars(layer):
            continue  # transformers' own way, still
        if style == "rowwise":
            layer.register_forward_hook(_Sum(layer.bias))
            layer.bias = None
        elif style in _SIDE_BY_SIDE:
            layer.register_forward_hook(_gather)


@contextmanager
def whole(layer: nn.Module, rank: int, count: int) -> Iterator[Mapping[str, Tensor]]:
    """Yield the weights of a module by name, whole: what is written to them is cut at the end.

    Args:
        layer: of which linear layers were `cut`; its weights are on their device.
        rank: of this process.
        count: of all.
    """
    given = dict(layer.named_parameters())
    dimensions = {
        f"{name}.weight" if name else "weight": vars(module).get(_DIMENSION)
        for name, module in layer.named_modules()
    }
    made: dict[str, Tensor] = {}
    for name, weight in given.items():
        dimension = dimensions.get(name)
        if dimension is None:
            made[name] = weight
            continue
        sizes = list(weight.shape)
        sizes[dimension] *= count
        made[name] = weight.new_empty(sizes)
    yield made
    for name, weight in given.items():
        dimension = dimensions.get(name)
        if dimension is not None:
            weight.copy_(made[name].chunk(count, dimension)[rank])


class _Sum:
    """Adds up what processes have, and then the bias, once."""

    def __init__(self, bias: Tensor | None) -> None:
        self._bias = bias

    def __call__(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        add_up(out)
        return out if self._bias is None else out + self._bias


def _gather(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    made: Tensor = side_by_side(out)
    return made


def _planned(model: Any) -> dict[str, str]:
    """Return the style of each module that the model's plan names."""
    plan: Mapping[str, str] = model.tp_plan or {}
    named = ((name, re.sub(r"\.\d+(?=\.|$)", ".*", name)) for name, _ in model.named_modules())
    return {name: plan[pattern] for name, pattern in named if pattern in plan}


def _is_of_its_forward(module: nn.Module) -> bool:
    """Whether a module's plan was declared with the forward that it has, or below it."""
    for one in type(module).__mro__:
        if "tp_plan" in vars(one):
            return True
        if "forward" in vars(one):
            return False
    return True


def _fits(layer: nn.Module, style: str, count: int) -> bool:
    """Whether a layer can be plain: linear, and of equal parts."""
    if style not in _CUT or not isinstance(layer, nn.Linear):
        return False
    return (layer.out_features, layer.in_features)[_CUT[style]] % count == 0


def _part(layer: Any, style: str, rank: int, count: int) -> tuple[Tensor, Tensor | None]:
    """Return one process's part of a linear layer's weight and bias, which they are views of."""
    dimension, bias = _CUT[style], layer.bias
    if bias is not None and dimension == _ROWS:
        bias = bias.chunk(count)[rank]
    return layer.weight.chunk(count, dimension)[rank], bias


def _become(layer: Any, weight: Tensor, bias: Tensor | None, style: str) -> None:
    """Give a linear layer this process's part of its weight."""
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    vars(layer)[_DIMENSION] = _CUT[style]
    layer.in_features = weight.shape[1]
    if style not in _SIDE_BY_SIDE:  # which give all columns
        layer.out_features = weight.shape[0]
