"""Linear layers that read the same input, multiplied at once; knows layers, no model.

A query, a key and a value projection are three products that each wait for a launch and read a
small weight. Stacked, their weights are read in one product, which reaches more of the bandwidth.
The modules stay where transformers has them, so no model code changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SharedInput", "fuse"]

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that siblings which read one input have in transformers' models."""


class _Product:
    """The product of one input with the stacked weights, kept until the last layer has its part."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> None:
        self.weight, self.bias, self.sizes = weight, bias, sizes
        self.input: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()

    def part(self, x: Tensor, index: int) -> Tensor:
        if self.input is not x:
            self.parts = torch.split(F.linear(x, self.weight, self.bias), self.sizes, dim=-1)
            self.input = x
        out = self.parts[index]
        if index == len(self.sizes) - 1:
            self.input, self.parts = None, ()
        return out


class SharedInput(nn.Linear):
    """A linear layer that leaves its product to be made together with its siblings'.

    Its weight is a view of the stacked one. Given another input than its siblings', it is still
    right, only not faster.
    """

    def __init__(self, dense: nn.Linear, weight: Tensor, product: _Product, index: int) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = dense.bias
        self._product, self._index = product, index

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        return self._product.part(x, self._index)


def fuse(module: nn.Module) -> int:
    """Stack the weights of linear layers that read the same input, in place.

    Args:
        module: frozen; whose children are replaced, at any depth.

    Returns:
        How many groups of layers were fused.
    """
    groups = 0
    for parent in list(module.modules()):
        for names in _TOGETHER:
            layers = [getattr(parent, name, None) for name in names]
            linear = [layer for layer in layers if type(layer) is nn.Linear]
            if len(linear) == len(names) and _alike(linear):
                _fuse(parent, names, linear)
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
        for layer in layers
    )


def _fuse(parent: nn.Module, names: tuple[str, ...], layers: list[nn.Linear]) -> None:
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    product = _Product(weight, torch.cat(biases) if biases else None, sizes)
    # The dense weights are let go of, one group at a time: no second copy of the model is made.
    for index, (name, view) in enumerate(zip(names, torch.split(weight, sizes), strict=True)):
        setattr(parent, name, SharedInput(layers[index], view, product, index))
