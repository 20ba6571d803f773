"""Triton kernels that multiply by a weight of four bits; `eagle.kernels.int4` says what they
compute.

Four numbers lie in each word of sixteen bits, a plane of columns each, so that two words that a
thread has beside one another become two bfloat16 numbers by a shift, a mask and two multiplications
of pairs. The exponent bits of 128 are put in front of a number, which is 128 more then, exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from eagle.kernels.few_rows import Tiling
from eagle.kernels.int4 import PLANES as _PLANES

__all__ = ["multiply_int4", "write_dense"]

PLANES = tl.constexpr(_PLANES)


def _instructions(plane: int) -> tl.constexpr:
    """Return what makes two words ($1) and the scale and zero of their row ($2) to two numbers."""
    return tl.constexpr(
        "{ .reg .b32 a, s, z, one, off; mov.b32 one, 0x3F803F80; mov.b32 off, 0xC308C308; "
        f"shr.b32 a, $1, {4 * plane}; lop3.b32 a, a, 0x000F000F, 0x43004300, 0xEA; "
        "fma.rn.bf16x2 a, a, one, off; "  # 128 + q - 136
        "prmt.b32 s, $2, 0, 0x1010; prmt.b32 z, $2, 0, 0x3232; fma.rn.bf16x2 $0, a, s, z; }"
    )


_PLANE_0, _PLANE_1, _PLANE_2, _PLANE_3 = (_instructions(plane) for plane in range(_PLANES))


@triton.jit
def _numbers(words, pairs, PLANE: tl.constexpr, NATIVE: tl.constexpr):
    """Return the numbers of one plane, bfloat16 ``[N, W]``, of words and of their rows' scales."""
    if NATIVE:
        low: tl.constexpr = _PLANE_0 if PLANE == 0 else _PLANE_1
        high: tl.constexpr = _PLANE_2 if PLANE == 2 else _PLANE_3
        text: tl.constexpr = low if PLANE < 2 else high
        return tl.inline_asm_elementwise(
            text,
            "=r,r,r,r",
            [words, tl.broadcast_to(pairs[:, None], words.shape)],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    whole = ((words >> (4 * PLANE)) & 15).to(tl.float32) - 8.0
    scale = (pairs << 16).to(tl.float32, bitcast=True)
    zero = (pairs & -65536).to(tl.float32, bitcast=True)
    return (whole * scale[:, None] + zero[:, None]).to(tl.bfloat16)


@triton.jit(do_not_specialize=["rows"])
def _few_rows(
    x,
    weight,
    pairs_ptr,
    out_ptr,
    rows,
    columns,
    depth,
    GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Multiply all rows by a block of the weight's rows, over one split of their length."""
    block, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    steps = depth // (PLANES * WIDTH)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(split * steps // SPLITS, (split + 1) * steps // SPLITS):
        words = weight.load([block * BLOCK_N, step * WIDTH])
        for plane in tl.static_range(PLANES):
            k = (step * PLANES + plane) * WIDTH
            if plane * WIDTH % GROUP == 0:
                pairs = tl.load(pairs_ptr + (k // GROUP) * columns + n)
            part = x.load([0, k])
            numbers = _numbers(words, pairs, plane, NATIVE).to(part.dtype)
            acc = tl.dot(numbers, tl.trans(part), acc, "ieee")
    m = tl.arange(0, BLOCK_M)
    tl.store(
        out_ptr + split * rows * columns + m[None, :] * columns + n[:, None],
        acc.to(out_ptr.dtype.element_ty),
        mask=(m < rows)[None, :],
    )


@triton.jit
def _dense(
    words_ptr,
    pairs_ptr,
    out_ptr,
    columns,
    depth,
    GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the numbers of a block of rows and the columns of one step."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, WIDTH)
    step = tl.program_id(1)
    row = n[:, None].to(tl.int64)
    words = tl.load(words_ptr + row * (depth // PLANES) + step * WIDTH + j[None, :])
    for plane in tl.static_range(PLANES):
        k = (step * PLANES + plane) * WIDTH
        pairs = tl.load(pairs_ptr + (k // GROUP) * columns + n)
        numbers = _numbers(words, pairs, plane, NATIVE)
        tl.store(out_ptr + row * depth + k + j[None, :], numbers.to(out_ptr.dtype.element_ty))


def multiply_int4(
    x: torch.Tensor,
    words: torch.Tensor,
    pairs: torch.Tensor,
    out: torch.Tensor,
    tiling: Tiling,
) -> None:
    """Write the parts of ``x W^T``, one for each split of K, whose sum is the product.

    Args:
        x: ``[M, K]``, contiguous; it begins at a multiple of 16 bytes.
        words: int16 ``[N, K / 4]``, likewise aligned.
        pairs: int32 ``[K / G, N]``.
        out: ``[S, M, N]``.
        tiling: how they are taken, a plane of a step at once.
    """
    splits, rows, columns = out.shape
    depth, width = x.shape[1], tiling.block_k
    with torch.cuda.device_of(x):
        _few_rows[(columns // tiling.block_n * splits,)](
            TensorDescriptor.from_tensor(x, [tiling.block_m, width]),
            TensorDescriptor.from_tensor(words, [tiling.block_n, width]),
            pairs,
            out,
            rows,
            columns,
            depth,
            GROUP=depth // len(pairs),
            NATIVE=x.is_cuda,
            SPLITS=splits,
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            WIDTH=width,
            num_warps=4,
            num_stages=tiling.stages,
        )


def write_dense(words: torch.Tensor, pairs: torch.Tensor, out: torch.Tensor, width: int) -> None:
    """Write W, ``[N, K]``, as `multiply_int4` multiplies by it."""
    columns, depth = out.shape
    with torch.cuda.device_of(out):
        _dense[(columns // 16, depth // (_PLANES * width))](
            words,
            pairs,
            out,
            columns,
            depth,
            GROUP=depth // len(pairs),
            NATIVE=out.is_cuda,
            BLOCK_N=16,
            WIDTH=width,
        )
