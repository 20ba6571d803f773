"""Experts of a mixture for few rows, each chosen one read once; knows weights, no model.

A verification sends a few rows to each of most experts, so its time is that of reading these.
Which are read is found on the device: shapes are fixed, nothing is read on the host, and a pass
can be captured. Experts that no row was sent to are not read.

What a row gives does not depend on the rows beside it as far as the order of summation goes: in
which blocks and parts a product is added up follows from the sizes of the experts and the device
alone, and a row's experts are added up in the order in which it names them. Within a block it is
the tensor cores' order, for tiles that are 16, 32 or 64 rows wide. No sum is made by atomics, so
the same call gives the same bits again.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.host import multiprocessors, shared_memory
from eagle.kernels.few_rows import block_rows
from eagle.kernels.prepacked import is_dense

__all__ = ["Tiling", "chosen", "mixes", "mixture", "mixture_by_operators", "tiling_of"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_ALIGNED = 16  # bytes: where a row may begin for the copy engine of the device
_OLDEST = (9, 0)  # compute capability: older ones have no such engine
_MOST_EXPERTS = 1024  # that are counted by one program
_BLOCK_N, _LEAST_N = 64, 16
# Columns of a weight that a program takes at once, of two weights and of one, and its warps, by the
# bytes of a number. Products in float32 are no tensor core's, and keep what they multiply in
# registers: more would not fit.
_AT_ONCE = {2: (64, 128, 4), 4: (16, 16, 8)}
_MOST_SPLITS, _LEAST_SPLIT = 8, 512  # of a row, and columns of one
_STAGES = 6
_RESERVED = 2048  # bytes of shared memory for what is not a block


@dataclass(frozen=True)
class Tiling:
    """How experts of one shape are shared out among programs, whatever the number of rows.

    Attributes:
        gated: columns that a program makes before the last product.
        down: columns of the last product that a program makes.
        splits: in how many parts it is made.
    """

    gated: int
    down: int
    splits: int


def mixes(gate_up: Tensor, down: Tensor, top: int) -> bool:
    """Whether `mixture` serves these experts here.

    Args:
        gate_up: ``[E, 2 I, H]``.
        down: ``[E, H, I]``.
        top: T, experts that a row is sent to.
    """
    return (
        gate_up.is_cuda
        and torch.version.hip is None
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(gate_up.device) >= _OLDEST
        and fits(gate_up, down, top)
    )


def fits(gate_up: Tensor, down: Tensor, top: int) -> bool:
    """Whether these are experts as `mixture` takes them: plain, aligned, gated, alike."""
    if not (is_dense(gate_up) and is_dense(down) and gate_up.dim() == down.dim() == 3):
        return False
    experts, hidden, inner = down.shape
    return (
        tuple(gate_up.shape) == (experts, 2 * inner, hidden)
        and gate_up.dtype == down.dtype
        and gate_up.dtype in _DTYPES
        and gate_up.device == down.device
        and 0 < top <= experts <= _MOST_EXPERTS
        and all(weight.is_contiguous() for weight in (gate_up, down))
        and not any(weight.data_ptr() % _ALIGNED for weight in (gate_up, down))
        and not any(size * down.itemsize % _ALIGNED for size in (hidden, inner))
    )


def tiling_of(hidden: int, inner: int, top: int, processors: int) -> Tiling:
    """Return how experts are shared out, so that one row's keep all of the device reading.

    Args:
        hidden: H.
        inner: I.
        top: T, experts that a row is sent to.
        processors: multiprocessors of the device.
    """

    def block(columns: int) -> int:
        size = _BLOCK_N
        while size > _LEAST_N and top * -(-columns // size) < processors:
            size //= 2
        return size

    # Two programs fit on a processor. A row is split before its tiles become narrow, for only
    # those of 64 rows use all of the tensor cores.
    tiles = top * -(-hidden // _BLOCK_N)
    splits = min(_MOST_SPLITS, inner // _LEAST_SPLIT, round(2 * processors / tiles))
    return Tiling(block(inner), _BLOCK_N if splits > 1 else block(hidden), max(1, splits))


def stages_of(weight_rows: int, block_m: int, row: int, room: int) -> int:
    """Return how many blocks are in flight, so that two programs fit on a processor.

    Args:
        weight_rows: rows of weights that a program takes.
        block_m: rows that they multiply.
        row: bytes of a row that are read at once.
        room: bytes of shared memory that a program may take.
    """
    return max(2, min(_STAGES, (room // 2 - _RESERVED) // ((weight_rows + block_m) * row)))


@torch.library.custom_op("eagle::mixture", mutates_args=())
def mixture(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return ``[M, H]``, the weighted sum of ``down (silu(gate x) * (up x))`` of rows' experts.

    Sums are in float32, and what is between the products is rounded to x's dtype. An id below 0,
    or of no expert, adds nothing.

    Args:
        x: ``[M, H]``, 1 to `MAX_ROWS` rows, in the dtype of the weights.
        ids: ``[M, T]``, the experts that each row is sent to.
        weights: ``[M, T]``, in any dtype.
        gate_up: ``[E, 2 I, H]``, the gates' rows first; see `fits`.
        down: ``[E, H, I]``.
    """
    _, hidden, inner = down.shape
    tiling = tiling_of(hidden, inner, ids.shape[1], multiprocessors(down.device))
    return made(x, ids, weights, gate_up, down, tiling)


@mixture.register_fake
def _(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def made(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, tiling: Tiling
) -> Tensor:
    """Return what `mixture` does, shared out as is said."""
    from eagle.kernels.experts_triton import activate, add_experts, multiply_down

    x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
    if x.data_ptr() % _ALIGNED:
        x = x.clone()
    (rows, top), (experts, columns, inner) = ids.shape, down.shape
    block_m, room = block_rows(rows), shared_memory(x.device)
    two, one, warps = _AT_ONCE[x.itemsize]
    found = chosen(ids, experts)
    hidden = x.new_empty(len(found), block_m, inner)
    activate(
        x,
        gate_up,
        found,
        hidden,
        block_n=tiling.gated,
        block_k=two,
        warps=warps,
        stages=stages_of(2 * tiling.gated, block_m, two * x.itemsize, room),
    )
    parts = x.new_empty(tiling.splits, rows, top, columns, dtype=torch.float32)
    multiply_down(
        hidden,
        down,
        found,
        ids,
        parts,
        block_n=tiling.down,
        block_k=one,
        warps=warps,
        stages=stages_of(tiling.down, block_m, one * x.itemsize, room),
    )
    out = torch.empty_like(x)
    add_experts(parts, ids, weights, out, experts)
    return out


def chosen(ids: Tensor, experts: int) -> Tensor:
    """Return the experts that some row is sent to, ``[G]``: in order, and -1 behind them.

    G is the fewer of all pairs and all experts. Of one row, they are in the order it names them.

    Args:
        ids: ``[M, T]``, contiguous.
        experts: E.
    """
    from eagle.kernels.experts_triton import find_experts

    if len(ids) == 1:
        return ids[0]  # one launch less; if it names one twice, that is made twice
    found = ids.new_empty(min(ids.numel(), experts))
    find_experts(ids, found, experts)
    return found


def mixture_by_operators(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Return what `mixture` does, by PyTorch's operators, for any number of rows.

    All experts are read, and all multiply all rows.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(len(down)):
        mine = ids == expert
        gate, up = F.linear(x, gate_up[expert]).float().chunk(2, -1)
        made = F.linear((F.silu(gate) * up).to(x.dtype), down[expert]).float()
        share = weights.float().where(mine, 0).sum(1, keepdim=True)
        out += (share * made).where(mine.any(1, keepdim=True), 0)
    return out.to(x.dtype)
