"""Products with a weight of eight bits, for drafts; knows weights, no model.

A drafted level of a few tokens waits for the LM head's weight, the largest there is, to be read.
With one byte for a number instead of two, that takes 1.7 instead of 2.65 ms (SmolLM2-135M, one to
eight rows, two cores of a Xeon with AMX), and on a GPU half as long too (`eagle bench products`).
Drafts may be a little off: what they are decides how many of them are accepted, and never what is
said.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from eagle.host import free_memory
from eagle.kernels.few_rows import (
    MAX_ROWS,
    SkinnyLinear,
    always,
    product_by_rows,
    product_of_bytes,
    reads_bytes,
)
from eagle.kernels.prepacked import PackedLinear, left_alone

__all__ = ["Int8Linear", "Int8OnCpu", "Int8OnGpu", "int8_linear", "quantize"]

_LARGEST, _ZERO = 127, 128
_SHARE = 0.25  # of the free memory that the weights of eight bits may take
# Elements that are quantized at once: on a CPU as many as its caches hold in float32, which takes
# two thirds of the time; on a GPU few launches.
_PIECE = {"cpu": 2**18, "cuda": 2**22}
_HELD = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # where oneDNN is told which instructions to use


class Int8Linear(ABC):
    """A linear layer ``x W^T + b`` whose weight is kept as int8, one scale for each row.

    Rows of x are quantized by themselves, so what a row gives does not depend on the others.

    Args:
        dense: the layer whose weight it takes.
    """

    def __init__(self, dense: nn.Linear) -> None:
        columns, depth = dense.weight.shape
        device = dense.weight.device
        self._bias, self._columns = dense.bias, columns
        self._scales = torch.empty(columns, dtype=torch.float32, device=device)
        weight = torch.empty(columns, depth, dtype=torch.int8, device=device)
        rows = max(1, _PIECE[device.type] // depth)  # at a time, for no float32 copy of the whole
        for start in range(0, columns, rows):
            piece, scales = quantize(dense.weight[start : start + rows])
            weight[start : start + rows] = piece
            self._scales[start : start + rows] = scales[:, 0]
        self._weight = self.laid_out(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``, ``[..., N]``, in x's dtype; not finite where a row of x is not.

        Args:
            x: ``[..., K]``, in the dtype of the layer that this was made of.
        """
        out = self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self._columns)
        return out if self._bias is None else out + self._bias

    def serves(self, x: Tensor) -> bool:
        """Whether the product of an input of this many rows is made here."""
        return True

    @abstractmethod
    def laid_out(self, weight: Tensor) -> Tensor:
        """Return the int8 weight ``[N, K]`` as `product` reads it."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """Return ``[M, N]`` of ``[M, K]``, without the bias."""


class Int8OnCpu(Int8Linear):
    """By oneDNN; in bfloat16."""

    def laid_out(self, weight: Tensor) -> Tensor:
        """Return the weight in oneDNN's layout."""
        self._zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
        return packed

    def product(self, x: Tensor) -> Tensor:
        """See `Int8Linear.product`."""
        values, scales = quantize(x)
        # Not signed: instructions older than AMX multiply unsigned by signed bytes, and what
        # oneDNN has for two signed ones is a hundred times slower there.
        shifted = values.view(torch.uint8) ^ _ZERO  # adds it
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, _ZERO, self._weight, self._scales, self._zeros,
            None, 1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return out.mul_(scales.to(x.dtype))


class Int8OnGpu(Int8Linear):
    """By a kernel of `eagle.kernels.few_rows`, in eager passes too: compiling them only rounds
    otherwise."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense)
        self._dense = dense.weight

    def serves(self, x: Tensor) -> bool:
        """Whether there are few rows: the time of many is not that of reading the weight.

        In code that serves any number of rows there may be.
        """
        rows = x.shape[:-1].numel()
        return not always(rows > MAX_ROWS) and not always(rows == 0)

    def laid_out(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight

    def product(self, x: Tensor) -> Tensor:
        """See `Int8Linear.product`."""
        values, scales = quantize(x)
        if always(x.shape[0] <= MAX_ROWS):
            return self.of_bytes(values, scales, x.dtype)
        args = (values, scales[:, 0], self._weight, self._scales)
        out: Tensor = product_by_rows(x, self._dense, *args)
        return out

    def of_bytes(self, values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``[M, N]`` of what `quantize` returns for ``[M, K]``, at most `MAX_ROWS` rows."""
        out: Tensor = product_of_bytes(values, scales[:, 0], self._weight, self._scales, dtype)
        return out


def int8_linear(dense: nn.Module) -> Int8Linear | None:
    """Return a layer's products by a weight of eight bits, or None where that would not pay.

    On a CPU it pays in bfloat16, where the processor multiplies bytes (VNNI) and oneDNN is not
    held to older instructions; on a GPU where `eagle.kernels.few_rows.reads_bytes` says so. Never
    where
    memory is short, nor for a layer that does something of its own, or that is `left_alone`.
    """
    if (
        type(dense) not in (nn.Linear, PackedLinear, SkinnyLinear)
        or not isinstance(dense, nn.Linear)
        or left_alone(dense)
        or dense.weight.numel() > _SHARE * free_memory(dense.weight.device)
    ):
        return None
    if dense.weight.is_cuda:
        return Int8OnGpu(dense) if reads_bytes(dense.weight) else None
    if (
        dense.weight.dtype != torch.bfloat16
        or dense.weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not torch.cpu._is_vnni_supported()
        or any(name in os.environ for name in _HELD)
    ):
        return None
    return Int8OnCpu(dense)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127, and what each row of them is to be multiplied by.

    Args:
        x: ``[M, K]``.

    Returns:
        int8 ``[M, K]``, and float32 ``[M, 1]``.
    """
    x = x.detach().float()
    scales = x.abs().amax(1, keepdim=True) / _LARGEST
    values = (x / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return values.to(torch.int8), scales
