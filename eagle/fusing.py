"""Linear layers that read the same input, multiplied at once; knows layers, no model.

A query, a key and a value projection are three products that each wait for a launch and read a
small weight. Stacked, their weights are read in one product, which reaches more of the bandwidth.
The modules stay where transformers has them, so no model code changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.packing import Switch

__all__ = ["SharedInput", "fuse"]

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that siblings which read one input have in transformers' models."""


class _Product:
    """The product of one input with the stacked weights, kept until the last layer has its part."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> None:
        self.weight, self.bias, self.sizes = weight, bias, sizes
        # Input and parts in one attribute, so that two threads cannot mix theirs.
        self._latest: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def part(self, x: Tensor, index: int) -> Tensor:
        latest = self._latest
        if latest is None or latest[0] is not x:
            parts = torch.split(F.linear(x, self.weight, self.bias), self.sizes, dim=-1)
            latest = (x, parts)
        self._latest = None if index == len(self.sizes) - 1 else latest
        return latest[1][index]


class SharedInput(nn.Linear):
    """A linear layer that leaves its product to be made together with its siblings'.

    Its weight is a view of the stacked one. Given another input than its siblings', it is still
    right, only not faster. With the switch off, or once the model has been moved to another device
    or dtype, it is an ordinary layer.
    """

    def __init__(
        self, dense: nn.Linear, weight: Tensor, product: _Product, index: int, switch: Switch
    ) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = dense.bias
        self.switch = switch
        self._product: _Product | None = product
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        if not self.switch.on or self._product is None:
            return F.linear(x, self.weight, self.bias)
        return self._product.part(x, self._index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedInput:
        # What `.to` and its like go through: they know parameters only, not the stacked weight.
        before = self.weight.data_ptr()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.data_ptr() != before:
            self._product = None
        return self


@torch.inference_mode(False)  # weights made in that mode could not be used outside it
def fuse(module: nn.Module, switch: Switch) -> int:
    """Stack the weights of linear layers that read the same input, in place.

    Args:
        module: frozen; whose children are replaced, at any depth. Those that are hooked stay.
        switch: shared by all layers, to turn fusing off for a while.

    Returns:
        How many groups of layers were fused.
    """
    groups = 0
    for layer in module.modules():
        if isinstance(layer, SharedInput):
            layer.switch = switch  # fused before, for another owner of the same module
    for parent in list(module.modules()):
        for names in _TOGETHER:
            layers = [getattr(parent, name, None) for name in names]
            linear = [layer for layer in layers if type(layer) is nn.Linear]
            if len(linear) == len(names) and _alike(linear):
                _fuse(parent, names, linear, switch)
                groups += 1
    return groups


def _alike(layers: list[nn.Linear]) -> bool:
    first = layers[0]
    return all(
        layer.in_features == first.in_features
        and layer.weight.dtype == first.weight.dtype
        and layer.weight.device == first.weight.device
        and (layer.bias is None) == (first.bias is None)
        and not layer.weight.requires_grad
        and not layer.weight.is_meta
        and not _hooked(layer)
        for layer in layers
    )


def _hooked(layer: nn.Linear) -> bool:
    # accelerate puts another `forward` on the layers of a model that it spreads over devices.
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def _fuse(
    parent: nn.Module, names: tuple[str, ...], layers: list[nn.Linear], switch: Switch
) -> None:
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    product = _Product(weight, torch.cat(biases) if biases else None, sizes)
    # The dense weights are let go of, one group at a time: no second copy of the model is made.
    for index, (name, view) in enumerate(zip(names, torch.split(weight, sizes), strict=True)):
        setattr(parent, name, SharedInput(layers[index], view, product, index, switch))
