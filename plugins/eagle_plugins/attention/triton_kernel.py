"""The Triton kernels of tree attention and their launch; knows tensors, no decoder.

Split-KV attention ("flash-decoding"): the queries of all N nodes and of the G query heads that
share a KV head are the rows of one tile, so committed keys are read once. A slot's
``lengths[b] + R`` rows are dealt out to a fixed number of splits, each a program with an online
softmax of its own, and their results are joined by their log-sum-exps: few of them by the program
that ends last, many side by side by a second kernel. Importing this module imports triton; whether
kernels are interpreted (``TRITON_INTERPRET=1``) is settled at that moment.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_plugins.attention.tiling import Tiling

__all__ = ["launch"]

_LOG2_E = 1.4426950408889634
_FEW = 8  # splits that one program joins sooner than a second kernel would start
_ORDERED = torch.version.hip is None  # AMD's barrier does not order what others will read
_MERGED = 4096  # partial results that a program of the second kernel holds, if one row allows


@triton.jit
def _capped(scores, scale, softcap):
    """Return ``softcap * tanh(s)`` of ``s = scores * scale``, in units of log 2."""
    # 1 - 2 / (e^2s + 1), which is right at both ends, where e^2s is infinite or nothing.
    e = tl.exp2(scores * (scale * 2.8853900817779268))
    return softcap * 1.4426950408889634 * (1.0 - 2.0 / (e + 1.0))


@triton.jit
def _absorb(scores, scale, value, best, total, acc, PRECISION: tl.constexpr):
    """Fold a block of scores (times *scale*: in units of log 2) into the running softmax."""
    found = tl.maximum(best, tl.max(scores, 1) * scale)
    shift = tl.where(found == float("-inf"), 0.0, found)  # nothing seen yet: no inf - inf
    weights = tl.exp2(scores * scale - shift[:, None])
    decay = tl.exp2(best - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    acc = tl.dot(weights.to(value.dtype), value, acc, input_precision=PRECISION)
    return found, total, acc


@triton.jit
def _row(table_ptr, start, PAGE: tl.constexpr):
    """Return which row of a store a slot's row is, the rows behind it in the same block too."""
    row = start
    if PAGE:
        row = tl.load(table_ptr + start // PAGE).to(tl.int64) * PAGE + start % PAGE
    return row


@triton.jit
def _join(
    lse_ptr,
    part_ptr,
    real,
    stored,
    stride,
    splits,
    sink,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Join the splits of one tile, which other programs may have written (past the L1, then)."""
    best = sink
    for split in range(splits):
        lse = tl.load(
            lse_ptr + split * stride, mask=real, other=float("-inf"), cache_modifier=".cg"
        )
        best = tl.maximum(best, lse)
    best = tl.where(best == float("-inf"), 0.0, best)
    total = tl.exp2(sink - best)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    # Nothing that is loaded depends on what was, so several splits are on their way at once.
    for split in tl.range(0, splits, loop_unroll_factor=4):
        lse = tl.load(
            lse_ptr + split * stride, mask=real, other=float("-inf"), cache_modifier=".cg"
        )
        part = tl.load(
            part_ptr + split * stride * HEAD_DIM, mask=stored, other=0.0, cache_modifier=".cg"
        )
        weight = tl.exp2(lse - best)
        total += weight
        acc += part * weight[:, None]
    total = tl.where(total == 0.0, 1.0, total)
    return acc / total[:, None]


@triton.jit(do_not_specialize=["window", "stride_tb", "stride_tn", "nodes", "width", "splits"])
def _attend(
    query_ptr,
    key_ptr,
    value_ptr,
    length_ptr,
    tail_ptr,
    out_ptr,
    part_ptr,
    lse_ptr,
    ticket_ptr,
    position_ptr,
    sink_ptr,
    table_ptr,
    scale,
    softcap,
    window,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_tb,
    stride_tn,
    stride_pb,
    nodes,
    width,
    splits,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    JOIN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    PAGE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend from one tile of (node, query head) rows over one split of a slot's rows."""
    # The tiles of one split run side by side, so that all but the first find its rows in the L2.
    tiles = (nodes * GROUPS + BLOCK_M - 1) // BLOCK_M
    tile, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    kv_head, slot = tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(1)

    # Loaded side by side: what comes first is bound by how long a load takes.
    length = tl.load(length_ptr + slot).to(tl.int32)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    node = m // GROUPS
    head = kv_head * GROUPS + m % GROUPS
    real = node < nodes
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM
    n = tl.arange(0, BLOCK_N)
    query = tl.load(
        query_ptr + slot * stride_qb + (head * stride_qh + node * stride_qn)[:, None] + d[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )

    rows = length + width
    base = 0
    if WINDOWED:
        # An entry is at no position before `length`, so nobody sees what is before this block.
        base = tl.maximum(length + 1 - window, 0) // BLOCK_N * BLOCK_N
        position_ptr += slot * nodes
        oldest = tl.load(position_ptr + node, mask=real, other=0).to(tl.int32) - window
    share = (rows - base + splits * BLOCK_N - 1) // (splits * BLOCK_N) * BLOCK_N
    first = base + split * share
    last = tl.maximum(tl.minimum(first + share, rows), first)  # a split may be left without rows

    kv_head64 = kv_head.to(tl.int64)
    key_ptr += slot * stride_kb + kv_head64 * stride_kh
    value_ptr += slot * stride_vb + kv_head64 * stride_vh
    table_ptr += slot * stride_pb
    key_at = (n * stride_kn)[:, None] + d[None, :]
    value_at = (n * stride_vn)[:, None] + d[None, :]
    tail_ptr += slot * stride_tb
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)

    # Blocks of nothing but committed rows: everybody sees them, or what a window leaves of them.
    whole = tl.maximum(tl.minimum(length // BLOCK_N * BLOCK_N, last), first)
    for start in range(first, whole, BLOCK_N):
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
            near = (start + n)[None, :] > oldest[:, None]
            scores = tl.where(near, scores, float("-inf"))
        best, total, acc = _absorb(scores, factor, value, best, total, acc, PRECISION)

    # Blocks with rows of the tree. What is behind them is not read: it may hold anything.
    for start in range(whole, last, BLOCK_N):
        row = start + n
        behind = row - length
        here = row < rows
        shown = here[:, None] & inside[None, :]
        at = _row(table_ptr, start, PAGE)
        key = tl.load(key_ptr + at * stride_kn + key_at, mask=shown, other=0.0)
        value = tl.load(value_ptr + at * stride_vn + value_at, mask=shown, other=0.0)
        allowed = tl.load(
            tail_ptr + (node * stride_tn)[:, None] + behind[None, :],
            mask=real[:, None] & (here & (behind >= 0))[None, :],
            other=0,
        )
        seen = (allowed != 0) | (behind < 0)[None, :]
        if WINDOWED:
            drafted = here & (behind >= 0)
            place = tl.load(position_ptr + behind, mask=drafted, other=0).to(tl.int32)
            place = tl.where(behind < 0, row, place)
            seen = seen & (place[None, :] > oldest[:, None])
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        scores = _capped(scores, scale, softcap) if CAPPED else scores * scale
        scores = tl.where(seen, scores, float("-inf"))
        best, total, acc = _absorb(scores, 1.0, value, best, total, acc, PRECISION)

    sink = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if SINKS:
        sink = tl.load(sink_ptr + head, mask=real, other=0.0).to(tl.float32)
        sink = sink * 1.4426950408889634
        if not SPLIT:
            found = tl.maximum(best, sink)
            decay = tl.exp2(best - found)
            total = total * decay + tl.exp2(sink - found)
            acc = acc * decay[:, None]
    total = tl.where(total == 0.0, 1.0, total)  # a row that sees nothing gives 0
    acc = acc / total[:, None]
    stored = real[:, None] & inside[None, :]
    if SPLIT:
        at = (slot * kv_heads + kv_head) * splits * (nodes * GROUPS) + m  # of the first split
        lse_ptr += at
        part_ptr += at[:, None] * HEAD_DIM + d[None, :]
        own = split * (nodes * GROUPS)
        tl.store(lse_ptr + own, best + tl.log2(total), mask=real)
        tl.store(part_ptr + own * HEAD_DIM, acc, mask=stored)
    if JOIN:
        # Whoever draws the last ticket of a tile sees what all others wrote before they drew one.
        tl.debug_barrier()
        ticket_ptr += (slot * kv_heads + kv_head) * tiles + tile
        if tl.atomic_add(ticket_ptr, 1, sem="acq_rel") < splits - 1:
            return
        tl.store(ticket_ptr, 0)  # as it was found
        acc = _join(
            lse_ptr,
            part_ptr,
            real,
            stored,
            nodes * GROUPS,
            splits,
            sink,
            HEAD_DIM,
            BLOCK_M,
            BLOCK_D,
        )
    if JOIN or not SPLIT:
        row = (slot * nodes + node) * (kv_heads * GROUPS) + head
        tl.store(
            out_ptr + row[:, None] * HEAD_DIM + d[None, :],
            acc.to(out_ptr.dtype.element_ty),
            mask=stored,
        )


@triton.jit(do_not_specialize=["nodes", "splits"])
def _merge(
    out_ptr,
    part_ptr,
    lse_ptr,
    sink_ptr,
    nodes,
    splits,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Join the splits of a few (node, query head) rows."""
    tile, kv_head, slot = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(1)
    split = tl.arange(0, BLOCK_S)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    node = m // GROUPS
    real = node < nodes
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM

    # All at once, also of splits without rows, which left only their log-sum-exp.
    row = ((slot * kv_heads + kv_head) * splits + split) * (nodes * GROUPS)
    row = row[:, None] + m[None, :]
    held = (split < splits)[:, None] & real[None, :]
    lse = tl.load(lse_ptr + row, mask=held, other=float("-inf"))
    part = tl.load(
        part_ptr + row[:, :, None] * HEAD_DIM + d[None, None, :],
        mask=held[:, :, None] & inside[None, None, :],
        other=0.0,
    )
    part = tl.where((lse == float("-inf"))[:, :, None], 0.0, part)
    best = tl.max(lse, 0)
    sink = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if SINKS:
        head = kv_head * GROUPS + m % GROUPS
        sink = tl.load(sink_ptr + head, mask=real, other=0.0).to(tl.float32)
        sink = sink * 1.4426950408889634
        best = tl.maximum(best, sink)
    best = tl.where(best == float("-inf"), 0.0, best)
    weights = tl.exp2(lse - best[None, :])
    total = tl.sum(weights, 0) + tl.exp2(sink - best)
    total = tl.where(total == 0.0, 1.0, total)
    joined = tl.sum(part * weights[:, :, None], 0) / total[:, None]
    row = (slot * nodes + node) * (kv_heads * GROUPS) + kv_head * GROUPS + m % GROUPS
    tl.store(
        out_ptr + row[:, None] * HEAD_DIM + d[None, :],
        joined.to(out_ptr.dtype.element_ty),
        mask=real[:, None] & inside[None, :],
    )


def launch(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    tail: Tensor,
    tickets: Tensor,
    scale: float,
    tiling: Tiling,
    table: Tensor | None = None,
    page: int = 0,
    *,
    positions: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend from the N new entries of each slot over its own rows of the cache.

    No device value is read on the host, and the launch depends on none: captured as a CUDA graph,
    it can be replayed with other lengths.

    Args:
        query: ``[B, query_heads, N, head_dim]``, contiguous in its last dimension.
        keys: ``[B, kv_heads, span, head_dim]``, likewise; only the first ``lengths[b] + R`` rows of
            a slot are read.
        values: the same shape.
        lengths: int64 ``[B]``, committed rows, which every entry sees.
        tail: bool ``[B, N, R]``, contiguous; entry i sees row ``lengths[b] + r`` where
            ``tail[b, i, r]``.
        tickets: int32, zeros, and zeros again afterwards. Few splits are joined by the second
            kernel, too, where there are fewer than one for each tile of each KV head and slot.
        scale: factor on the scores before the softmax, above zero.
        tiling: block sizes, splits, warps and stages.
        table: int32 ``[B, M]``, contiguous: where slots' rows lie in blocks of the stores, which
            keys and values then are, ``[1, kv_heads, all rows, head_dim]``.
        page: rows of such a block, a multiple of the tiling's.
        positions: int64 ``[B, N]``, contiguous, of the entries, none before ``lengths[b]``; their
            rows are those of the tail, in order. For a window.
        window: entries see only what is less than this many positions before them; blocks that
            nobody sees are not read.
        softcap: c, where a scaled score s becomes ``c * tanh(s / c)``.
        sinks: ``[query_heads]``, contiguous, a score that takes part in the softmax and has no row.

    Returns:
        ``[B, N, query_heads, head_dim]``, contiguous, in the dtype of *query*; rows that see
        nothing are zero.
    """
    slots, heads, nodes, head_dim = query.shape
    kv_heads, width = keys.shape[1], tail.shape[2]
    if table is None:
        page = 0
    else:
        assert page % tiling.block_n == 0, "a step over the cache must not leave its block"
        keys, values = (store.expand(slots, -1, -1, -1) for store in (keys, values))
    groups, splits = heads // kv_heads, tiling.splits
    out = query.new_empty(slots, nodes, heads, head_dim)
    shape = (slots, kv_heads, splits, nodes * groups) if splits > 1 else (0,)
    part = out.new_empty((*shape, head_dim), dtype=torch.float32)
    lse = out.new_empty(shape, dtype=torch.float32)
    tiles = triton.cdiv(nodes * groups, tiling.block_m)
    join = 1 < splits <= _FEW and tickets.numel() >= tiles * kv_heads * slots and _ORDERED
    block_d = max(16, triton.next_power_of_2(head_dim))
    with torch.cuda.device_of(query):
        _attend[(tiles * splits, kv_heads, slots)](
            query,
            keys,
            values,
            lengths,
            tail.view(torch.uint8),
            out,
            part,
            lse,
            tickets,
            positions,
            sinks,
            lengths if table is None else table,  # which is not read, but has to be something
            scale * _LOG2_E if softcap is None else scale / softcap,
            softcap or 0.0,
            window or 0,
            *query.stride()[:3],
            *keys.stride()[:3],
            *values.stride()[:3],
            *tail.stride()[:2],
            0 if table is None else table.stride(0),
            nodes,
            width,
            splits,
            GROUPS=groups,
            HEAD_DIM=head_dim,
            SPLIT=splits > 1,
            JOIN=join,
            WINDOWED=window is not None,
            CAPPED=softcap is not None,
            SINKS=sinks is not None,
            PAGE=page,
            PRECISION="ieee",
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_D=block_d,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
        if splits > 1 and not join:
            block_s = triton.next_power_of_2(splits)
            block_m = max(1, min(8, _MERGED // (block_s * block_d)))
            _merge[(triton.cdiv(nodes * groups, block_m), kv_heads, slots)](
                out,
                part,
                lse,
                sinks,
                nodes,
                splits,
                GROUPS=groups,
                HEAD_DIM=head_dim,
                SINKS=sinks is not None,
                BLOCK_S=block_s,
                BLOCK_M=block_m,
                BLOCK_D=block_d,
                num_warps=4,
            )
    return out
