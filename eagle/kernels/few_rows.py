"""Products of few rows with a weight, in compiled passes on a GPU; knows layers, no model.

A verification multiplies a tree's nodes by every weight, so its time is that of reading them, or
where they are small, that of one load after another. cuBLAS is made for more rows: on an H200 it
takes 31.7, 48.3 and 28.9 us for 26 rows and the largest weights of LLaMA2-7B, these kernels 29.6,
48.7 and 27.0, for 61 rows 30.2, 51.9 and 30.1, and 30.9, 49.9 and 28.1; for 26 rows and
SmolLM2-135M's down projection 4.9 and 3.1, for one row 4.9 and 2.5 (`eagle bench products`). Small
weights are also cut along their length, so that more of the device reads; what follows in the
compiled pass adds up the parts. Of a weight kept in int8, which drafts may read, half as many bytes
are read. From 128 rows on cuBLAS is the quicker one: 29.3, 51.2 and 31.6 us, these kernels at best
31.0, 54.6 and 34.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.host import multiprocessors, shared_memory
from eagle.kernels.prepacked import Switch, left_alone

__all__ = [
    "BLOCK_K",
    "BLOCK_N",
    "MAX_ROWS",
    "Plan",
    "SkinnyLinear",
    "Tiling",
    "aligned",
    "always",
    "block_rows",
    "linear",
    "narrow",
    "on_device",
    "plan_of",
    "product",
    "product_by_rows",
    "product_of_bytes",
    "product_parts",
    "reads_bytes",
    "tiling_of",
]

MAX_ROWS = 64
"""Products of more rows are left to cuBLAS."""

BLOCK_N, BLOCK_K = 64, 128
"""Rows and columns of a weight that a program takes at once, where there are several rows."""

_DTYPES = (torch.bfloat16, torch.float16)
_RESERVED = 2048  # bytes of shared memory for what is not a block
_ALIGNED = 16  # bytes: where a row may begin for the copy engine of the device
_OLDEST = (9, 0)  # compute capability; of older ones none has been measured
# Elements, and columns, of the weights of which it has been.
_LARGE, _LONG = 2**23, 2048
_SMALL = 2**22
# Columns that the kernel of one row takes at once. Where a long row is no multiple of them, it is
# no quicker than cuBLAS: for 4,096 x 11,008, 38.1 and 37.2 us, where two parts take 33.7.
_STRIDE, _VERY_LONG = 2048, 8192
# Programs for each multiprocessor that read a weight as quickly as more do, with all of its memory
# for blocks in flight: 64 programs on 132 of an H200.
_ENOUGH = 0.45
_FEWEST_STAGES, _MOST_STAGES = 3, 8


@dataclass(frozen=True)
class Plan:
    """Which products with a weight are made here.

    Attributes:
        one: in how many parts a weight's rows are read for a single row; 0 for cuBLAS.
        splits: the same for more rows.
    """

    one: int = 0
    splits: int = 0

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(self.one or self.splits)

    def parts(self, rows: int) -> int:
        """Return in how many parts a product of *rows* rows is made; 0 for cuBLAS."""
        if not 0 < rows <= MAX_ROWS:
            return 0
        return self.one if rows == 1 else self.splits


def plan_of(weight: Tensor, *, shared: bool = False) -> Plan:
    """Return which products with a weight are quicker by the kernels of this module.

    Args:
        weight: ``[N, K]``.
        shared: whether the product is handed to several layers, each of which would have to add
            up its parts.
    """
    if (
        not _measured(weight)
        or weight.stride(1) != 1
        or weight.data_ptr() % _ALIGNED
        or any(rows * weight.itemsize % _ALIGNED for rows in (weight.stride(0), weight.shape[1]))
    ):
        return Plan()
    columns, depth = weight.shape
    return _plan(columns, depth, shared, multiprocessors(weight.device))


def reads_bytes(weight: Tensor) -> bool:
    """Whether products with a weight are quicker by `product_of_bytes`, from a copy in int8.

    Args:
        weight: ``[N, K]``.
    """
    return _measured(weight) and weight.numel() >= _LARGE and weight.shape[1] % _ALIGNED == 0


def _measured(weight: Tensor) -> bool:
    return weight.dtype in _DTYPES and on_device(weight.device)


def on_device(device: torch.device) -> bool:
    """Whether kernels of few rows run on a device: timed on H100 and H200."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= _OLDEST
    )


def _plan(columns: int, depth: int, shared: bool, processors: int) -> Plan:
    if columns * depth >= _LARGE:
        if depth < _LONG:
            return Plan()
        programs = columns // BLOCK_N
        one = 2 if programs < processors and depth > _VERY_LONG and depth % _STRIDE else 1
        return Plan(one, 1 if programs >= _ENOUGH * processors else 2)
    if columns * depth > _SMALL:
        return Plan()
    # Two blocks for each program. Of as many as eight parts, adding up would be a kernel by itself.
    return Plan(1, 1 if shared else min(-(-depth // (2 * BLOCK_K)), 6))


def always(condition: bool) -> bool:
    """Return whether a condition on sizes holds for all sizes that code is being compiled for.

    Outside of compilers, whether it holds. A compiler takes no note of the answer, so that code
    that serves many sizes goes on to serve them.
    """
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # a compiler has it

    return statically_known_true(condition)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """Return ``x W^T + b``, from a kernel of this module in compiled passes of few rows.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``, or None.
        plan: what `plan_of` says of the weight.
    """
    rows = x.shape[:-1].numel()
    if not (plan.any and x.dtype == weight.dtype and torch.compiler.is_compiling()):
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, x.shape[-1])
    out: Tensor
    if not (always(rows <= MAX_ROWS) or always(rows > MAX_ROWS)):
        out = product(flat, weight, plan.one, plan.splits)
    elif splits := plan.parts(rows):
        out = _summed(product_parts(flat, weight, splits), x.dtype)
    else:
        return F.linear(x, weight, bias)
    out = out.view(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


class SkinnyLinear(nn.Linear):
    """A linear layer that shares the weight of another; with the switch off, it is ordinary."""

    def __init__(self, dense: nn.Linear, switch: Switch, plan: Plan) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight, self.bias = dense.weight, dense.bias
        self.switch = switch
        self._plan = plan

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        return linear(x, self.weight, self.bias, self._plan if self.switch.on else Plan())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SkinnyLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._plan = plan_of(self.weight)
        return self


def narrow(module: nn.Module, switch: Switch) -> None:
    """Replace the linear layers of a frozen module on a GPU that have products made here.

    Args:
        module: whose children are replaced, at any depth. Those that are `left_alone` stay.
        switch: shared by all layers, to turn this off for a while.
    """
    for layer in module.modules():
        if isinstance(layer, SkinnyLinear):
            layer.switch = switch  # replaced before, for another owner of the same module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (
                type(child) is nn.Linear
                and not left_alone(child)
                and not child.weight.requires_grad
            ):
                plan = plan_of(child.weight)
                if plan != Plan():
                    setattr(parent, name, SkinnyLinear(child, switch, plan))


@torch.library.custom_op("eagle::product_parts", mutates_args=())
def product_parts(x: Tensor, weight: Tensor, splits: int) -> Tensor:
    """Return ``[S, M, N]``, whose sum over S is ``x W^T``; in float32 where S is above 1.

    Args:
        x: ``[M, K]``, at most `MAX_ROWS` rows.
        weight: ``[N, K]``, aligned as `plan_of` asks.
        splits: S.
    """
    from eagle.kernels.few_rows_triton import multiply_row

    out = _made(x, weight, splits)
    if x.shape[0] == splits == 1:
        multiply_row(x.contiguous(), weight, out)
        return out
    return _multiply(x, weight, out)


@torch.library.custom_op("eagle::product", mutates_args=())
def product(x: Tensor, weight: Tensor, one: int, splits: int) -> Tensor:
    """Return ``x W^T``, ``[M, N]``, where code that is compiled once serves any number of rows.

    Who makes it is chosen when it runs. Chosen while compiling, few rows would be code of their
    own, which is compiled when the first requests of many have ended and the others go on.

    Args:
        x: ``[M, K]``.
        weight: ``[N, K]``, aligned as `plan_of` asks.
        one: see `Plan`.
        splits: see `Plan`.
    """
    parts = Plan(one, splits).parts(x.shape[0])
    if not parts:
        return F.linear(x, weight)
    return _summed(product_parts(x, weight, parts), x.dtype)


@product.register_fake
def _(x: Tensor, weight: Tensor, one: int, splits: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0).to(dtype)


@torch.library.custom_op("eagle::product_of_bytes", mutates_args=())
def product_of_bytes(
    x: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return ``x W^T``, ``[M, N]``, for rows and a weight that are int8 times a scale each.

    Args:
        x: int8 ``[M, K]``, at most `MAX_ROWS` rows; K is a multiple of 16.
        row_scales: float32 ``[M]``.
        weight: int8 ``[N, K]``, contiguous.
        scales: float32 ``[N]``.
        dtype: of the product.
    """
    out = x.new_empty(1, x.shape[0], weight.shape[0], dtype=dtype)
    return _multiply(x, weight, out, (row_scales.contiguous(), scales))[0]


@product_of_bytes.register_fake
def _(x: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


@torch.library.custom_op("eagle::product_by_rows", mutates_args=())
def product_by_rows(
    x: Tensor, dense: Tensor, values: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor
) -> Tensor:
    """Return ``x W^T``, ``[M, N]``: by `product_of_bytes` of few rows, by the weight of more.

    Which it is, is chosen when it runs, as in `product`.

    Args:
        x: ``[M, K]``.
        dense: W, ``[N, K]``.
        values: x as whole numbers, int8 ``[M, K]``.
        row_scales: float32 ``[M]``.
        weight: W as whole numbers, int8 ``[N, K]``, contiguous.
        scales: float32 ``[N]``.
    """
    if x.shape[0] > MAX_ROWS:
        return F.linear(x, dense)
    out: Tensor = product_of_bytes(values, row_scales, weight, scales, x.dtype)
    return out


@product_by_rows.register_fake
def _(
    x: Tensor, dense: Tensor, values: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _multiply(
    x: Tensor, weight: Tensor, out: Tensor, scales: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Write ``x W^T`` to ``[S, M, N]`` by the kernel of few rows, and return that."""
    from eagle.kernels.few_rows_triton import multiply_rows

    x = aligned(x)
    tiling = tiling_of(
        x.shape[0],
        weight.shape[0],
        x.shape[1],
        out.shape[0],
        x.itemsize,
        multiprocessors(x.device),
        shared_memory(x.device),
    )
    multiply_rows(x, weight, out, scales, tiling)
    return out


def aligned(x: Tensor) -> Tensor:
    """Return rows in order, from where the copy engine of the device may begin to read."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNED else x


@dataclass(frozen=True)
class Tiling:
    """How the kernel of few rows takes its rows and a weight.

    Attributes:
        block_m: what the rows are filled up to.
        block_n: rows of the weight that a program takes.
        block_k: columns of it that it reads at once.
        stages: blocks of it in flight.
    """

    block_m: int
    block_n: int
    block_k: int
    stages: int


def tiling_of(
    rows: int, columns: int, depth: int, splits: int, itemsize: int, processors: int, room: int
) -> Tiling:
    """Return how a weight is taken.

    A program has the memory of a multiprocessor to itself where there are no more programs than
    multiprocessors, and half of it where there are and that is enough. Higher blocks are taken
    where all programs then run at once, two on each: 344 programs of 264 would leave the last 80 to
    read alone.

    Args:
        rows: M.
        columns: N.
        depth: K.
        splits: S.
        itemsize: bytes of an element.
        processors: multiprocessors of the device.
        room: bytes of shared memory that a multiprocessor has for programs.
    """
    block_m, block_n, block_k = block_rows(rows), BLOCK_N, BLOCK_K
    programs, at_once = -(-columns // block_n) * splits, 2 * processors
    if itemsize > 1 and programs > at_once >= (halved := -(-columns // (2 * block_n)) * splits):
        block_n, block_k, programs = 2 * block_n, block_k // 2, halved
    held = (block_n + block_m) * block_k * itemsize  # by each stage
    steps = -(-depth // (splits * block_k))
    alone, shared = ((room // share - _RESERVED) // held for share in (1, 2))
    stages = alone if programs <= processors or shared < _FEWEST_STAGES else shared
    return Tiling(block_m, block_n, block_k, max(1, min(_MOST_STAGES, steps + 1, stages)))


def block_rows(rows: int) -> int:
    """Return how many rows a block of *rows* is filled up to: a power of two, at least 16."""
    return max(16, 1 << (rows - 1).bit_length())


def _made(x: Tensor, weight: Tensor, splits: int) -> Tensor:
    dtype = x.dtype if splits == 1 else torch.float32
    return x.new_empty(splits, x.shape[0], weight.shape[0], dtype=dtype)


product_parts.register_fake(_made)
