"""Products with a weight of eight bits on a CPU, for drafts; knows weights, no model.

A drafted level of a few tokens waits for the LM head's weight, the largest there is, to be read.
With one byte for a number instead of two, that takes 1.7 instead of 2.65 ms (SmolLM2-135M, one to
eight rows, two cores of a Xeon with AMX). Drafts may be a little off: what they are decides how
many of them are accepted, and never what is said.
"""

from __future__ import annotations

import os

import psutil
import torch
from torch import Tensor, nn

from eagle.packing import PackedLinear, hooked

__all__ = ["Int8Linear", "int8_linear"]

_LARGEST = 127
_SHARE = 0.25  # of the free memory that the weights of eight bits may take
_PIECE = 2**22  # elements that are quantized at once
_HELD = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # where oneDNN is told which instructions to use


class Int8Linear:
    """A linear layer ``x W^T + b`` whose weight is kept as int8, one scale for each row.

    Rows of x are quantized by themselves, so what a row gives does not depend on the others.

    Args:
        dense: the layer whose weight it takes; bfloat16, on a CPU.
    """

    def __init__(self, dense: nn.Linear) -> None:
        columns, depth = dense.weight.shape
        device = dense.weight.device
        self._bias, self._columns = dense.bias, columns
        self._scales = torch.empty(columns, dtype=torch.float32, device=device)
        self._zeros = torch.zeros(columns, dtype=torch.int32, device=device)
        weight = torch.empty(columns, depth, dtype=torch.int8, device=device)
        rows = max(1, _PIECE // depth)  # at a time, for no float32 copy of the whole
        for start in range(0, columns, rows):
            piece, scales = _quantize(dense.weight[start : start + rows])
            weight[start : start + rows] = piece
            self._scales[start : start + rows] = scales[:, 0]
        self._weight: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``, ``[..., N]``, in bfloat16; not finite where a row of x is not.

        Args:
            x: bfloat16 ``[..., K]``.
        """
        values, scales = _quantize(x.reshape(-1, x.shape[-1]))
        # Not signed: instructions older than AMX multiply unsigned by signed bytes, and what
        # oneDNN has for two signed ones is a hundred times slower there.
        shifted = (values + (_LARGEST + 1)).to(torch.uint8)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, _LARGEST + 1, self._weight, self._scales, self._zeros,
            None, 1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        out = out.mul_(scales.to(out.dtype)).view(*x.shape[:-1], self._columns)
        return out if self._bias is None else out + self._bias


def int8_linear(dense: nn.Module) -> Int8Linear | None:
    """Return a layer's products by a weight of eight bits, or None where that would not pay.

    Not on other devices than the CPU, in other dtypes than bfloat16, where the processor has no
    products of bytes (VNNI) or oneDNN is held to older instructions, or where memory is short. Not
    of a layer that does something of its own, or that is hooked.
    """
    if (
        type(dense) not in (nn.Linear, PackedLinear)
        or not isinstance(dense, nn.Linear)
        or hooked(dense)
        or dense.weight.dtype != torch.bfloat16
        or dense.weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not torch.cpu._is_vnni_supported()
        or any(name in os.environ for name in _HELD)
        or dense.weight.numel() > _SHARE * psutil.virtual_memory().available
    ):
        return None
    return Int8Linear(dense)


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127, and what each row of them is to be multiplied by."""
    x = x.detach().float()
    scales = x.abs().amax(1, keepdim=True) / _LARGEST
    return (x / scales.clamp(min=torch.finfo(torch.float32).tiny)).round(), scales
