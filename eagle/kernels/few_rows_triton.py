"""Triton kernels that multiply few rows by a weight; `eagle.kernels.few_rows` says what they
compute.

Both are bound by reading the weight, so a program takes few of its rows and there are many
programs: as many as keep every multiprocessor reading until the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    from eagle.kernels.few_rows import Tiling

__all__ = ["multiply_row", "multiply_rows"]


@triton.jit
def _one_row(
    x_ptr,
    weight_ptr,
    out_ptr,
    columns,
    depth,
    stride,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Multiply one row: nothing for tensor cores, whose tiles would be empty but for one row."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    present = (n < columns)[:, None]
    at = weight_ptr + n[:, None].to(tl.int64) * stride + k[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, depth, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptr + start + k)
            weight = tl.load(at, eviction_policy="evict_first")
        else:
            inside = start + k < depth
            x = tl.load(x_ptr + start + k, mask=inside, other=0.0)
            weight = tl.load(
                at, mask=present & inside[None, :], other=0.0, eviction_policy="evict_first"
            )
        acc += weight.to(tl.float32) * x.to(tl.float32)[None, :]
        at += BLOCK_K
    out = tl.sum(acc, 1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + n, out, mask=n < columns)


@triton.jit(do_not_specialize=["rows"])
def _few_rows(
    x,
    weight,
    out_ptr,
    row_scales_ptr,
    scales_ptr,
    rows,
    columns,
    depth,
    SCALED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Multiply all rows by a block of the weight's rows, over one split of their length.

    The weight comes first, as the tensor cores take 64 rows of their first factor at once. Blocks
    are loaded through descriptors, which fill up with zeros past the end of a row or a column.
    Where they are int8, what they add up to is scaled by its row of x and by that of the weight.
    """
    block, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    share = tl.cdiv(depth, BLOCK_K * SPLITS) * BLOCK_K
    first = split * share
    last = tl.minimum(first + share, depth)
    exact: tl.constexpr = tl.int32 if SCALED else tl.float32
    acc = tl.zeros([BLOCK_N, BLOCK_M], exact)
    for k in range(first, last, BLOCK_K):
        read = weight.load([block * BLOCK_N, k])
        acc = tl.dot(read, tl.trans(x.load([0, k])), acc, "ieee", out_dtype=exact)
    m = tl.arange(0, BLOCK_M)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    out = acc.to(tl.float32)
    if SCALED:
        out *= tl.load(scales_ptr + n, mask=n < columns, other=0.0)[:, None]
        out *= tl.load(row_scales_ptr + m, mask=m < rows, other=0.0)[None, :]
    tl.store(
        out_ptr + split * rows * columns + m[None, :] * columns + n[:, None],
        out.to(out_ptr.dtype.element_ty),
        mask=(m < rows)[None, :] & (n < columns)[:, None],
    )


def multiply_row(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``x W^T`` of one row ``[1, K]`` to ``[1, N]``."""
    columns, depth = weight.shape
    block_n, block_k = 2, min(2048, triton.next_power_of_2(depth))
    with torch.cuda.device_of(x):
        _one_row[(triton.cdiv(columns, block_n),)](
            x,
            weight,
            out,
            columns,
            depth,
            weight.stride(0),
            EVEN=columns % block_n == 0 and depth % block_k == 0,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4 if depth > block_k else max(1, block_k // 1024),
        )


def multiply_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    tiling: Tiling,
) -> None:
    """Write the parts of ``x W^T``, one for each split of K, whose sum is the product.

    Args:
        x: ``[M, K]``, contiguous; it begins, and so does each of its rows, at a multiple of 16
            bytes.
        weight: ``[N, K]``, likewise aligned.
        out: ``[S, M, N]``.
        scales: what rows of x ``[M]`` and of the weight ``[N]``, both int8, are to be multiplied
            by, in float32.
        tiling: how x and the weight are taken.
    """
    splits, rows, columns = out.shape
    block_m, block_n, block_k = tiling.block_m, tiling.block_n, tiling.block_k
    with torch.cuda.device_of(x):
        _few_rows[(triton.cdiv(columns, block_n) * splits,)](
            TensorDescriptor.from_tensor(x, [block_m, block_k]),
            TensorDescriptor.from_tensor(weight, [block_n, block_k]),
            out,
            *(scales or (None, None)),
            rows,
            columns,
            x.shape[1],
            SCALED=scales is not None,
            SPLITS=splits,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4,
            num_stages=tiling.stages,
        )
