"""Linear layers in the layout that a CPU multiplies fastest; knows layers, no model.

PyTorch hands a dense weight to oneDNN, which arranges it anew in every call. Arranged once, a
bfloat16 pass of SmolLM2-135M over 1 to 16 tokens takes 10 to 25 % less time, and its LM head 25 to
45 %; float32 gains nothing (a dense product of one row is faster there), so it is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.host import free_memory

__all__ = [
    "PackedLinear",
    "Switch",
    "is_dense",
    "is_wrapped",
    "left_alone",
    "multiply",
    "pack",
    "packs",
    "reorder",
]

_ROWS = 16  # rows that the layout is made for: about a token tree
_SHARE = 0.25  # of the free memory that the copies may take; the dense weights are kept


@dataclass
class Switch:
    """How packed and fused layers compute.

    Attributes:
        on: whether they use the weights made for them; off, they are ordinary.
        traced: whether dense weights stand for the packed ones, which cannot be traced: what is
            compiled from that is given the packed ones later.
    """

    on: bool = True
    traced: bool = False


def reorder(weight: Tensor) -> Tensor:
    """Return a packed copy of a dense weight."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + b`` for a packed W."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


class PackedLinear(nn.Linear):
    """A linear layer that shares the weight of another and keeps a packed copy beside it.

    With the switch off, or once the model has been moved to another device or dtype, it is an
    ordinary layer.
    """

    def __init__(self, dense: nn.Linear, switch: Switch) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight, self.bias = dense.weight, dense.bias
        self.switch = switch
        self.packed: Tensor | None = reorder(dense.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        if not self.switch.on or self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return multiply(x, self.weight if self.switch.traced else self.packed, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        # What `.to` and its like go through: they know parameters only, not the packed copy.
        before = self.weight.data_ptr()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.data_ptr() != before:
            self.packed = None
        return self


def packs(module: nn.Module) -> bool:
    """Whether packing the linear layers of a module pays, and its memory can be had.

    Not on other devices than the CPU, in other dtypes than bfloat16, without oneDNN's support for
    it, or where memory is short.
    """
    weights = [
        child.weight
        for child in module.modules()
        if type(child) is nn.Linear and not left_alone(child)
    ]
    return (
        all(w.dtype == torch.bfloat16 and w.device.type == "cpu" for w in weights)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and sum(w.nbytes for w in weights) <= _SHARE * free_memory(torch.device("cpu"))
    )


def pack(module: nn.Module, switch: Switch) -> bool:
    """Replace the linear layers of a frozen module, where that pays.

    Args:
        module: whose children are replaced, at any depth. Those that are `left_alone` stay.
        switch: shared by all layers, to turn packing off for a while.

    Returns:
        Whether they were, which `packs` decides.
    """
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            layer.switch = switch  # packed before, for another owner of the same module
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and not left_alone(child)
    ]
    if not found or not packs(module):
        return False
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child, switch))
    return True


def left_alone(layer: nn.Linear) -> bool:
    """Whether a layer is not what its class says: somebody else decides how it multiplies.

    Its forward is hooked or replaced, as accelerate does on the layers of a model that it spreads
    over devices and compressed-tensors on those that quantize their input, or its weight is no
    plain tensor, as those that torchao quantizes, has too few bits to be one, or is not there.
    """
    return is_wrapped(layer) or not is_dense(getattr(layer, "weight", None))


def is_wrapped(layer: nn.Module) -> bool:
    """Whether somebody hooked or replaced a layer's forward."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return bool(hooks) or "forward" in vars(layer)


def is_dense(weight: object) -> bool:
    """Whether a weight, of any kind, is a plain tensor of numbers of sixteen bits or more."""
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter):
        return False
    return weight.is_floating_point() and weight.itemsize > 1
