"""Products of few rows with a large weight, in compiled passes on a GPU; knows layers, no model.

A verification multiplies a tree's nodes by every weight, so its time is that of reading them. On an
H100 cuBLAS takes 5.15, 5.08 and 5.29 ms for the products of all layers of LLaMA2-7B and 1, 26 and
61 rows, these kernels 4.45, 4.92 and 5.05, and reading 4.19. The long and narrow ones gain most:
there are too few blocks of them to keep the device reading, so they are cut along their length too,
and what follows in the compiled pass adds up the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.packing import Switch
from eagle.surroundings import multiprocessors

__all__ = ["MAX_ROWS", "SkinnyLinear", "linear", "narrow", "splits_of"]

MAX_ROWS = 64
"""Products of more rows are left to cuBLAS."""

_DTYPES = (torch.bfloat16, torch.float16)
_BLOCK_N, _BLOCK_K = 64, 128
_STAGES = 6, 4  # of a product in one part, and in several
_ALIGNED = 16  # bytes: where a row may begin for the copy engine of the device
_LARGE = 2**23  # elements: reading a smaller weight takes no longer than a launch
_OLDEST = (9, 0)  # compute capability, of which this has been measured


def splits_of(weight: Tensor) -> int:
    """Return in how many parts a weight's rows are read, or 0 where cuBLAS multiplies it.

    Args:
        weight: ``[N, K]``.
    """
    if (
        not weight.is_cuda
        or weight.dtype not in _DTYPES
        or weight.stride(1) != 1
        or weight.numel() < _LARGE
        or weight.data_ptr() % _ALIGNED
        or weight.stride(0) * weight.itemsize % _ALIGNED
        or find_spec("triton") is None
        or torch.cuda.get_device_capability(weight.device) < _OLDEST
    ):
        return 0
    return 1 if weight.shape[0] // _BLOCK_N >= multiprocessors(weight.device) else 2


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, splits: int) -> Tensor:
    """Return ``x W^T + b``, from a kernel of this module in compiled passes of few rows.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``, or None.
        splits: what `splits_of` says of the weight.
    """
    rows = x.shape[:-1].numel()
    if not (splits and 0 < rows <= MAX_ROWS and torch.compiler.is_compiling()):
        return F.linear(x, weight, bias)
    parts: Tensor = product_parts(x.reshape(rows, x.shape[-1]), weight, 1 if rows == 1 else splits)
    out = parts[0] if parts.shape[0] == 1 else parts.sum(0).to(x.dtype)
    out = out.view(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


class SkinnyLinear(nn.Linear):
    """A linear layer that shares the weight of another; with the switch off, it is ordinary."""

    def __init__(self, dense: nn.Linear, switch: Switch, splits: int) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight, self.bias = dense.weight, dense.bias
        self.switch = switch
        self._splits = splits

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        return linear(x, self.weight, self.bias, self._splits if self.switch.on else 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SkinnyLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._splits = splits_of(self.weight)
        return self


def narrow(module: nn.Module, switch: Switch) -> None:
    """Replace the large linear layers of a frozen module on a GPU.

    Args:
        module: whose children are replaced, at any depth. Those that are hooked stay.
        switch: shared by all layers, to turn this off for a while.
    """
    for layer in module.modules():
        if isinstance(layer, SkinnyLinear):
            layer.switch = switch  # replaced before, for another owner of the same module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not hooked(child) and not child.weight.requires_grad:
                splits = splits_of(child.weight)
                if splits:
                    setattr(parent, name, SkinnyLinear(child, switch, splits))


def hooked(layer: nn.Linear) -> bool:
    """Whether somebody else has hooked a layer, or put another `forward` on it.

    accelerate does, on the layers of a model that it spreads over devices.
    """
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


@torch.library.custom_op("eagle::product_parts", mutates_args=())
def product_parts(x: Tensor, weight: Tensor, splits: int) -> Tensor:
    """Return ``[S, M, N]``, whose sum over S is ``x W^T``; in float32 where S is above 1.

    Args:
        x: ``[M, K]``, at most `MAX_ROWS` rows.
        weight: ``[N, K]``, of which `splits_of` does not say 0.
        splits: S; 1 for a single row.
    """
    from eagle.skinny_kernels import multiply_row, multiply_rows

    x, out = x.contiguous(), _made(x, weight, splits)
    if x.shape[0] == 1:
        multiply_row(x, weight, out)
        return out
    if x.data_ptr() % _ALIGNED:
        x = x.clone()
    stages = _STAGES[splits > 1]
    multiply_rows(x, weight, out, block_n=_BLOCK_N, block_k=_BLOCK_K, stages=stages)
    return out


def _made(x: Tensor, weight: Tensor, splits: int) -> Tensor:
    dtype = x.dtype if splits == 1 else torch.float32
    return x.new_empty(splits, x.shape[0], weight.shape[0], dtype=dtype)


product_parts.register_fake(_made)
