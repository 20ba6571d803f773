"""Indices drawn in proportion to weights, given uniforms: in PyTorch, or in two kernels on CUDA.

One operator for `torch.compile`, too: PyTorch 2.11 fails to compile the cumulative sum of a
vocabulary beside the reductions around it.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["draw", "draw_by_operators", "padded", "rows_of"]

_BLOCK = 1024  # weights that one program adds up
_TRITON = find_spec("triton") is not None


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return indices by inverse transform on a float64 cumulative sum.

    Args:
        weights: float ``[..., V]``, not negative, not necessarily normalised. An index of weight
            zero is never drawn; where all are zero the result is 0.
        uniforms: float64 ``[...]`` in [0, 1).

    Returns:
        int64 ``[...]``.
    """
    if weights.is_cuda and _TRITON:
        drawn: Tensor = _draw(weights, uniforms)
        return drawn
    return draw_by_operators(weights, uniforms)


def draw_by_operators(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Do what `draw` does with PyTorch's operators, on any device."""
    total = weights.to(torch.float64).cumsum(-1)
    mass = total[..., -1:]
    # right=True finds the first index whose cumulative mass exceeds the threshold; rounding up to
    # the whole mass is undone by stepping one ulp below it.
    threshold = torch.minimum(uniforms[..., None] * mass, torch.nextafter(mass, 0 * mass))
    index = torch.searchsorted(total, threshold, right=True).clamp(max=total.shape[-1] - 1)
    # That index has positive weight, unless the sum was taken in parallel: then its last bit may
    # change where nothing is added. Such a hit, of probability 1e-16, goes elsewhere.
    hit = weights.gather(-1, index) > 0
    return index.where(hit, weights.argmax(-1, keepdim=True)).where(mass > 0, 0)[..., 0]


@torch.library.custom_op("eagle::draw", mutates_args=())
def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    from eagle.kernels.sampling_triton import draw_from_row, sum_blocks

    weights, vocab = weights.contiguous(), weights.shape[-1]
    rows, blocks = weights.numel() // vocab, -(-vocab // _BLOCK)
    sums = torch.empty(rows, blocks, dtype=torch.float64, device=weights.device)
    drawn = torch.empty(weights.shape[:-1], dtype=torch.int64, device=weights.device)
    with torch.cuda.device_of(weights):  # type: ignore[no-untyped-call]
        sum_blocks[(rows, blocks)](weights, sums, vocab, _BLOCK, num_warps=4)
        draw_from_row[(rows,)](
            weights, sums, uniforms.contiguous(), drawn, vocab, blocks,
            _BLOCK, padded(blocks), num_warps=4,
        )  # fmt: skip
    return drawn


@_draw.register_fake
def _(weights: Tensor, uniforms: Tensor) -> Tensor:
    return weights.new_empty(weights.shape[:-1], dtype=torch.int64)


def rows_of(x: Tensor) -> Tensor:
    """Return a matrix whose rows may lie anywhere, but whose entries lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def padded(count: int) -> int:
    """Return the next power of two, of which Triton's tiles are."""
    return 1 << (count - 1).bit_length()
