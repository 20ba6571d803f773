"""Triton kernels of the experts of a mixture; `eagle.kernels.experts` says what they compute.

All are bound by reading weights. A program takes some rows of one chosen expert's weight and
multiplies all rows of the pass by them: they fit into one tile of the tensor cores, so nothing is
sorted, and what an expert gives for rows that were not sent to it is not kept.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["activate", "add_experts", "find_experts", "multiply_down"]

_HELD = 2**13  # pairs times experts that are compared at once, where chosen experts are found
_MOST_PAIRS = 64
_COLUMNS = 512  # that a program adds up


@triton.jit(do_not_specialize=["pairs", "groups"])
def _find(ids_ptr, found_ptr, pairs, groups, experts, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr):
    """Write the experts that some row was sent to, in order, and -1 behind them."""
    e = tl.arange(0, BLOCK_E)
    hit = tl.zeros([BLOCK_E], tl.int32)
    for start in range(0, pairs, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        ids = tl.load(ids_ptr + p, mask=p < pairs, other=-1).to(tl.int32)
        hit = tl.maximum(hit, tl.max((ids[None, :] == e[:, None]).to(tl.int32), 1))
    hit = tl.where(e < experts, hit, 0)
    before = tl.cumsum(hit, 0) - hit
    place = tl.where(hit == 1, before, tl.sum(hit, 0) + e - before)
    found = tl.where(hit == 1, e, -1).to(found_ptr.dtype.element_ty)
    tl.store(found_ptr + place, found, mask=place < groups)


@triton.jit
def _activate(
    x,
    weight,
    found_ptr,
    hidden_ptr,
    experts,
    inner,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write ``silu(gate x) * (up x)`` of all rows, for some columns of one chosen expert.

    The weight comes first, as the tensor cores take 64 rows of their first factor at once. Blocks
    are loaded through descriptors, which fill up with zeros past the end of a row or a column;
    rows past the end of an expert are another's, and what they give is not kept.
    """
    tiles = tl.cdiv(inner, BLOCK_N)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    expert = tl.load(found_ptr + group).to(tl.int32)
    if (expert < 0) | (expert >= experts):
        return
    row = expert * 2 * inner + tile * BLOCK_N
    gate = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in range(0, depth, BLOCK_K):
        rows = tl.trans(x.load([0, k]))
        gate = tl.dot(weight.load([row, k]), rows, gate, "ieee")
        up = tl.dot(weight.load([row + inner, k]), rows, up, "ieee")
    made = gate / (1 + tl.exp(-gate)) * up
    m = group * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(
        hidden_ptr + m[None, :].to(tl.int64) * inner + n[:, None],
        made.to(hidden_ptr.dtype.element_ty),
        mask=(n < inner)[:, None],
    )


@triton.jit(do_not_specialize=["rows"])
def _down(
    hidden,
    weight,
    found_ptr,
    ids_ptr,
    parts_ptr,
    rows,
    experts,
    columns,
    depth,
    TOP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write ``down h`` of the rows that were sent to one chosen expert, over one split of h."""
    tiles = tl.cdiv(columns, BLOCK_N)
    split, rest = tl.program_id(0) % SPLITS, tl.program_id(0) // SPLITS
    group, tile = rest // tiles, rest % tiles
    expert = tl.load(found_ptr + group).to(tl.int32)
    if (expert < 0) | (expert >= experts):
        return
    share = tl.cdiv(depth, BLOCK_K * SPLITS) * BLOCK_K
    first = split * share
    last = tl.minimum(first + share, depth)
    row = expert * columns + tile * BLOCK_N
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in range(first, last, BLOCK_K):
        acc = tl.dot(
            weight.load([row, k]), tl.trans(hidden.load([group * BLOCK_M, k])), acc, "ieee"
        )
    m, t = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_T)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    known = (m < rows)[:, None] & (t < TOP)[None, :]
    ids = tl.load(ids_ptr + m[:, None] * TOP + t[None, :], mask=known, other=-1)
    # Where a row names an expert twice, the first place is written, and read for both.
    place = tl.min(tl.where(ids == expert, t[None, :], TOP), 1)
    pair = (split * rows + m) * TOP + place
    tl.store(
        parts_ptr + pair[None, :].to(tl.int64) * columns + n[:, None],
        acc,
        mask=(place < TOP)[None, :] & (n < columns)[:, None],
    )


@triton.jit(do_not_specialize=["rows"])
def _add(
    parts_ptr,
    ids_ptr,
    weights_ptr,
    out_ptr,
    rows,
    experts,
    columns,
    TOP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add up what a row's experts give, in the order in which it names them."""
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.arange(0, BLOCK_T)
    ids = tl.load(ids_ptr + row * TOP + t, mask=t < TOP, other=-1)
    total = tl.zeros([BLOCK_N], tl.float32)
    for each in range(TOP):
        expert = tl.load(ids_ptr + row * TOP + each)
        known = n < tl.where((expert >= 0) & (expert < experts), columns, 0)
        place = tl.min(tl.where(ids == expert, t, TOP), 0)
        made = tl.zeros([BLOCK_N], tl.float32)
        for split in range(SPLITS):
            pair = ((split * rows + row) * TOP + place).to(tl.int64)
            made += tl.load(parts_ptr + pair * columns + n, mask=known, other=0.0)
        total += tl.load(weights_ptr + row * TOP + each).to(tl.float32) * made
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row.to(tl.int64) * columns + n, out, mask=n < columns)


def find_experts(ids: torch.Tensor, found: torch.Tensor, experts: int) -> None:
    """Write which experts rows were sent to, in order, and -1 behind them.

    Args:
        ids: ``[M, T]``, contiguous.
        found: ``[G]``, G being the fewer of M * T and all experts.
        experts: how many there are.
    """
    block = triton.next_power_of_2(experts)
    with torch.cuda.device_of(ids):
        _find[(1,)](
            ids, found, ids.numel(), found.numel(), experts,
            BLOCK_E=block, BLOCK_P=min(_MOST_PAIRS, max(1, _HELD // block)), num_warps=4,
        )  # fmt: skip


def activate(
    x: torch.Tensor,
    weight: torch.Tensor,
    found: torch.Tensor,
    hidden: torch.Tensor,
    *,
    block_n: int,
    block_k: int,
    warps: int,
    stages: int,
) -> None:
    """Write what each found expert makes of all rows before its last product.

    Args:
        x: ``[M, K]``, contiguous; it begins, and so does each of its rows, at a multiple of 16
            bytes.
        weight: ``[E, 2 N, K]``, contiguous and likewise aligned: gates, then what they scale.
        found: of `find_experts`.
        hidden: ``[G, B, N]``, contiguous; B is M filled up to a power of two, at least 16.
        block_n: columns of *hidden* that a program makes.
        block_k: columns of the weight that it reads at once.
        warps: of a program.
        stages: blocks of the weight in flight.
    """
    groups, block_m, inner = hidden.shape
    experts, _, depth = weight.shape
    with torch.cuda.device_of(x):
        _activate[(groups * triton.cdiv(inner, block_n),)](
            TensorDescriptor.from_tensor(x, [block_m, block_k]),
            TensorDescriptor.from_tensor(weight.view(-1, depth), [block_n, block_k]),
            found,
            hidden,
            experts,
            inner,
            depth,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=warps,
            num_stages=stages,
        )


def multiply_down(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    found: torch.Tensor,
    ids: torch.Tensor,
    parts: torch.Tensor,
    *,
    block_n: int,
    block_k: int,
    warps: int,
    stages: int,
) -> None:
    """Write the last product of each row's experts, in parts whose sum it is.

    Args:
        hidden: ``[G, B, K]`` of `activate`.
        weight: ``[E, N, K]``, contiguous, aligned as there.
        found: of `find_experts`.
        ids: ``[M, T]``, contiguous.
        parts: float32 ``[S, M, T, N]``; where an id is none of an expert, nothing is written.
        block_n: columns of *parts* that a program makes.
        block_k: columns of the weight that it reads at once.
        warps: of a program.
        stages: blocks of the weight in flight.
    """
    groups, block_m, depth = hidden.shape
    splits, rows, top, columns = parts.shape
    with torch.cuda.device_of(hidden):
        _down[(groups * triton.cdiv(columns, block_n) * splits,)](
            TensorDescriptor.from_tensor(hidden.view(-1, depth), [block_m, block_k]),
            TensorDescriptor.from_tensor(weight.view(-1, depth), [block_n, block_k]),
            found,
            ids,
            parts,
            rows,
            len(weight),
            columns,
            depth,
            TOP=top,
            BLOCK_T=triton.next_power_of_2(top),
            SPLITS=splits,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=warps,
            num_stages=stages,
        )


def add_experts(
    parts: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    out: torch.Tensor,
    experts: int,
) -> None:
    """Write the weighted sums of what rows' experts gave.

    Args:
        parts: of `multiply_down`.
        ids: ``[M, T]``, contiguous.
        weights: ``[M, T]``, contiguous.
        out: ``[M, N]``, contiguous.
        experts: how many there are.
    """
    splits, rows, top, columns = parts.shape
    with torch.cuda.device_of(out):
        _add[(rows, triton.cdiv(columns, _COLUMNS))](
            parts,
            ids,
            weights,
            out,
            rows,
            experts,
            columns,
            TOP=top,
            BLOCK_T=triton.next_power_of_2(top),
            SPLITS=splits,
            BLOCK_N=_COLUMNS,
            num_warps=4,
        )
