"""The Triton kernel of packed prompts and its launch; knows tensors, no decoder.

Causal attention of many entries of several texts in one pass ("varlen" flash attention,
arXiv 2307.08691) that finds keys and values in blocks: those of the pass are written before.
Importing this module imports triton; whether kernels are interpreted is settled at that moment.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_plugins.attention.tiling import Tiling
from eagle_plugins.attention.triton_kernel import _absorb, _capped, _row

__all__ = ["launch"]

_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["window", "segments", "entries"])
def _read(
    query_ptr,
    key_ptr,
    value_ptr,
    length_ptr,
    offset_ptr,
    table_ptr,
    sink_ptr,
    out_ptr,
    scale,
    softcap,
    window,
    stride_qh,
    stride_qn,
    stride_kh,
    stride_kn,
    stride_vh,
    stride_vn,
    stride_pb,
    segments,
    entries,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Attend from one tile of one segment's entries, for one query head."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM
    # Which of the segments' tiles this is; there are a few programs more than tiles.
    s = tl.arange(0, BLOCK_S)
    begins = tl.load(offset_ptr + s, mask=s < segments, other=0)
    ends = tl.load(offset_ptr + s + 1, mask=s < segments, other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    before = tl.cumsum(tiles, 0) - tiles
    spare = tl.program_id(0) - tl.sum(tiles, 0)
    if spare >= 0:
        # Of entries behind all segments nothing is known; no part of what follows is to be NaN.
        m = (tl.max(ends, 0) + spare * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        tl.store(
            out_ptr + ((m * heads + head) * HEAD_DIM)[:, None] + d[None, :],
            tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty),
            mask=(m < entries)[:, None] & inside[None, :],
        )
        return
    here = (before <= tl.program_id(0)) & (tl.program_id(0) < before + tiles)
    segment = tl.sum(tl.where(here, s, 0), 0)
    entry = tl.sum(tl.where(here, begins, 0), 0)
    count = tl.sum(tl.where(here, ends - begins, 0), 0)
    tile = tl.program_id(0) - tl.sum(tl.where(here, before, 0), 0)
    length = tl.load(length_ptr + segment).to(tl.int32)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = m < count
    own = length + m  # the row of each entry, the last that it sees
    n = tl.arange(0, BLOCK_N)
    at_entry = (entry + m).to(tl.int64)
    query = tl.load(
        query_ptr + head.to(tl.int64) * stride_qh + (at_entry * stride_qn)[:, None] + d[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )
    kv_head = (head // GROUPS).to(tl.int64)
    key_ptr += kv_head * stride_kh
    value_ptr += kv_head * stride_vh
    table_ptr += segment.to(tl.int64) * stride_pb
    key_at = (n * stride_kn)[:, None] + d[None, :]
    value_at = (n * stride_vn)[:, None] + d[None, :]
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)

    # Blocks of rows that all of the tile's entries see, or what a window leaves of them.
    first = length + tile * BLOCK_M + 1
    base = 0
    if WINDOWED:
        # Nobody sees what is before the block in which the first entry's window begins.
        base = tl.maximum(first - window, 0) // BLOCK_N * BLOCK_N
    whole = first // BLOCK_N * BLOCK_N
    rows = length + tl.minimum(count, (tile + 1) * BLOCK_M)
    for start in range(base, whole, BLOCK_N):
        at = _row(table_ptr, start, PAGE)
        if HEAD_DIM == BLOCK_D:
            key = tl.load(key_ptr + at * stride_kn + key_at)
            value = tl.load(value_ptr + at * stride_vn + value_at)
        else:
            key = tl.load(key_ptr + at * stride_kn + key_at, mask=inside[None, :], other=0.0)
            value = tl.load(value_ptr + at * stride_vn + value_at, mask=inside[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        factor = scale
        if CAPPED:
            scores = _capped(scores, scale, softcap)
            factor = 1.0
        if WINDOWED:
            near = (start + n)[None, :] > (own - window)[:, None]
            scores = tl.where(near, scores, float("-inf"))
        best, total, acc = _absorb(scores, factor, value, best, total, acc, PRECISION)

    # Blocks with the entries' own rows. What is behind them is not read: it may hold anything.
    for start in range(whole, rows, BLOCK_N):
        row = start + n
        shown = (row < rows)[:, None] & inside[None, :]
        at = _row(table_ptr, start, PAGE)
        key = tl.load(key_ptr + at * stride_kn + key_at, mask=shown, other=0.0)
        value = tl.load(value_ptr + at * stride_vn + value_at, mask=shown, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        scores = _capped(scores, scale, softcap) if CAPPED else scores * scale
        seen = row[None, :] <= own[:, None]
        if WINDOWED:
            seen = seen & (row[None, :] > (own - window)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        best, total, acc = _absorb(scores, 1.0, value, best, total, acc, PRECISION)

    if SINKS:
        sink = tl.load(sink_ptr + head).to(tl.float32) * 1.4426950408889634
        found = tl.maximum(best, sink)
        decay = tl.exp2(best - found)
        total = total * decay + tl.exp2(sink - found)
        acc = acc * decay[:, None]
    total = tl.where(real, total, 1.0)  # every entry sees its own row
    acc = acc / total[:, None]
    tl.store(
        out_ptr + ((at_entry * heads + head) * HEAD_DIM)[:, None] + d[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=real[:, None] & inside[None, :],
    )


def launch(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    table: Tensor,
    scale: float,
    tiling: Tiling,
    page: int,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend from every entry over its text up to its own row.

    The launch depends on sizes alone, and no device value is read on the host.

    Args:
        query: ``[1, query_heads, T, head_dim]``, contiguous in its last dimension.
        keys: ``[1, kv_heads, all rows, head_dim]``, likewise, in which the entries' rows are
            written.
        values: the same shape.
        lengths: int64 ``[S]``, committed rows of each segment.
        offsets: int32 ``[S + 1]``, where each segment's entries begin, and the last ends. Segments
            may be empty; what T counts beyond them belongs to none and becomes zero.
        table: int32 ``[S, M]``, contiguous: the blocks of each segment's text.
        scale: factor on the scores before the softmax, above zero.
        tiling: block sizes, warps and stages.
        page: rows of a block, a multiple of the tiling's.
        window: entries see only what is less than this many rows before them; blocks that no entry
            of a tile sees are not read.
        softcap: c, where a scaled score s becomes ``c * tanh(s / c)``.
        sinks: ``[query_heads]``, contiguous, a score that takes part in the softmax and has no row.

    Returns:
        ``[1, T, query_heads, head_dim]``, contiguous, in the dtype of *query*.
    """
    assert page % tiling.block_n == 0, "a step over the cache must not leave its block"
    _, heads, entries, head_dim = query.shape
    segments = lengths.shape[0]
    out = query.new_empty(1, entries, heads, head_dim)
    with torch.cuda.device_of(query):
        _read[(triton.cdiv(entries, tiling.block_m) + segments, heads)](
            query,
            keys,
            values,
            lengths,
            offsets,
            table,
            sinks,
            out,
            scale * _LOG2_E if softcap is None else scale / softcap,
            softcap or 0.0,
            window or 0,
            *query.stride()[1:3],
            *keys.stride()[1:3],
            *values.stride()[1:3],
            table.stride(0),
            segments,
            entries,
            GROUPS=heads // keys.shape[1],
            HEAD_DIM=head_dim,
            PAGE=page,
            WINDOWED=window is not None,
            CAPPED=softcap is not None,
            SINKS=sinks is not None,
            PRECISION="ieee",
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
            BLOCK_S=max(2, triton.next_power_of_2(segments)),
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
    return out
