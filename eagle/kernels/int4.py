"""Linear layers whose weight has four bits a number, for few rows and many; knows layers, no model.

The numbers are torchao's: ``(q - 8) s + z`` rounded to bfloat16, with s and z for each group of a
row. torchao multiplies one row quickly and reads the weight again for every eight, so a verified
tree of 26 nodes takes 95 us for the stacked projections of LLaMA2-7B (12,288 x 4,096) on an H200,
where bfloat16 takes 29. These kernels read it once: 17 us, and 14 instead of 17 for one row. Where
rows are many, the weight is written out in bfloat16 and multiplied by cuBLAS.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.host import multiprocessors
from eagle.kernels.few_rows import MAX_ROWS, Tiling, aligned, always, block_rows, on_device
from eagle.kernels.fused_linear import SharedProduct, siblings

__all__ = [
    "PLANES",
    "Int4Linear",
    "Int4Part",
    "cut_of",
    "int4_serves",
    "stack_int4",
    "width_of",
]

PLANES = 4
"""Numbers in a word."""

_WIDEST = 64  # columns of a plane: 128 bytes of words, as the copy engine of the device takes them
_BLOCK_N, _FEW, _TALL = 64, 16, 2**13
# Programs for each multiprocessor: as many as there is room for beside one another, where rows are
# few and the weight is too short for high blocks (4,096 x 11,008: 14.6 us, and 15.5 of fewer).
_PROGRAMS, _MORE = 2.9, 4.0
_STEPS = 2  # of the depth, at least, that a split has


class Int4Linear(nn.Module):
    """A linear layer ``x W^T + b`` whose weight is kept in four bits a number.

    Args:
        whole: q, uint8 ``[N, K]`` of 0 to 15; N is a multiple of 64, K one of 128.
        scales: s, bfloat16 ``[K / G, N]``, for groups of G, a multiple of 32.
        zeros: z, likewise.
        bias: ``[N]``, or None.

    Attributes:
        qweight: int16 ``[N, K / 4]``. Words lie in steps of ``4 W`` columns, W being 64 or 32; bits
            4p to 4p + 3 of word j of a step are column ``p W + j`` of it.
        pairs: int32 ``[K / G, N]``: s in the low half, z in the high one.
    """

    qweight: Tensor
    pairs: Tensor
    bias: Tensor | None

    def __init__(self, whole: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = whole.shape
        self.width = width_of(self.in_features, self.in_features // len(scales))
        first, *others = whole.view(len(whole), -1, PLANES, self.width).unbind(2)
        words = first.to(torch.int16)
        for plane, numbers in enumerate(others, 1):
            words |= numbers.to(torch.int16) << 4 * plane
        self.register_buffer("qweight", words.flatten(1))
        low, high = (part.contiguous().view(torch.int16).int() for part in (scales, zeros))
        self.register_buffer("pairs", ((low & 0xFFFF) | (high << 16)).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``, ``[..., N]``, of ``[..., K]``."""
        flat = x.reshape(-1, self.in_features)
        out = self._product(flat).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _product(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return F.linear(x, self.dense().to(x.dtype))
        rows, packed = x.shape[0], (self.qweight, self.pairs, self.width)
        if torch.compiler.is_compiling() and always(rows <= MAX_ROWS) and not always(rows == 0):
            cut = _cut(x, *packed, few=always(rows <= _FEW))
            return _added(int4_parts(x, *packed, *cut), x)  # by what is compiled
        out: Tensor = int4_product(x, *packed)
        return out

    def dense(self) -> Tensor:
        """Return W, bfloat16 ``[N, K]``."""
        return _dense(self.qweight, self.pairs, self.width)


def int4_serves(columns: int, depth: int, group: int, device: torch.device) -> bool:
    """Whether `Int4Linear` takes a weight ``[N, K]`` in groups of *group*, and is quick there."""
    return columns % _BLOCK_N == 0 and width_of(depth, group) > 0 and on_device(device)


def width_of(depth: int, group: int) -> int:
    """Return W, the columns of a plane (see `Int4Linear`); 0 where none goes."""
    for width in (_WIDEST, _WIDEST // 2):
        step = PLANES * width  # groups begin where steps do, or at one of their planes
        if group % width == depth % step == 0 and 0 in (step % group, group % step):
            return width
    return 0


def cut_of(columns: int, depth: int, width: int, processors: int, *, few: bool) -> tuple[int, int]:
    """Return how many rows of a weight a program takes, and in how many parts the depth is read.

    Programs are many and small because each waits for its numbers to be unpacked before it
    multiplies, and for that before it unpacks the next: others read meanwhile.

    Args:
        columns: N.
        depth: K.
        width: columns of a plane.
        processors: multiprocessors of the device.
        few: whether there are at most 16 rows.
    """
    twice = few and columns >= _TALL and columns % (2 * _BLOCK_N) == 0
    block_n = 2 * _BLOCK_N if twice else _BLOCK_N
    most = max(1, depth // (PLANES * width * _STEPS))
    programs = processors * (_MORE if few and not twice else _PROGRAMS)
    return block_n, max(1, min(8, most, round(programs * block_n / columns)))


def _cut(x: Tensor, words: Tensor, pairs: Tensor, width: int, *, few: bool) -> tuple[int, int]:
    processors = multiprocessors(x.device)
    return cut_of(len(words), x.shape[1], width, processors, few=few)


@torch.library.custom_op("eagle::int4_parts", mutates_args=())
def int4_parts(
    x: Tensor, words: Tensor, pairs: Tensor, width: int, block_n: int, splits: int
) -> Tensor:
    """Return ``[S, M, N]``, whose sum over S is ``x W^T``; in float32 where S is above 1.

    Args:
        x: bfloat16 ``[M, K]``, at most `MAX_ROWS` rows, and one at least.
        words: see `Int4Linear.qweight`.
        pairs: see `Int4Linear.pairs`.
        width: columns of a plane.
        block_n: rows of the weight that a program takes.
        splits: S.
    """
    from eagle.kernels.int4_triton import multiply_int4

    x, rows = aligned(x), x.shape[0]
    out: Tensor = _parts(x, words, pairs, width, block_n, splits)
    tiling = Tiling(block_rows(rows), block_n, width, 2 if rows > MAX_ROWS // 2 else 3)
    multiply_int4(x, words, pairs, out, tiling)
    return out


@int4_parts.register_fake
def _parts(
    x: Tensor, words: Tensor, pairs: Tensor, width: int, block_n: int, splits: int
) -> Tensor:
    dtype = x.dtype if splits == 1 else torch.float32
    return x.new_empty(splits, x.shape[0], len(words), dtype=dtype)


@torch.library.custom_op("eagle::int4_product", mutates_args=())
def int4_product(x: Tensor, words: Tensor, pairs: Tensor, width: int) -> Tensor:
    """Return ``x W^T``, ``[M, N]``, of any number of rows; see `int4_parts`."""
    if not 0 < x.shape[0] <= MAX_ROWS:
        return F.linear(x, _dense(words, pairs, width))
    cut = _cut(x, words, pairs, width, few=x.shape[0] <= _FEW)
    return _added(int4_parts(x, words, pairs, width, *cut), x)


@int4_product.register_fake
def _(x: Tensor, words: Tensor, pairs: Tensor, width: int) -> Tensor:
    return x.new_empty(x.shape[0], len(words))


def _added(parts: Tensor, x: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(x.dtype)


def _dense(words: Tensor, pairs: Tensor, width: int) -> Tensor:
    """Return W, bfloat16 ``[N, K]``."""
    columns, depth = len(words), PLANES * words.shape[1]
    if words.is_cuda:
        from eagle.kernels.int4_triton import write_dense

        out = torch.empty(columns, depth, dtype=torch.bfloat16, device=words.device)
        write_dense(words, pairs, out, width)
        return out
    planes = [words.int() >> 4 * plane & 15 for plane in range(PLANES)]
    whole = torch.stack([plane.view(columns, -1, width) for plane in planes], 2).flatten(1)
    scales, zeros = (
        part.view(torch.float32).T.repeat_interleave(depth // len(pairs), 1)
        for part in (pairs << 16, pairs & -65536)
    )
    return ((whole - 8).float() * scales + zeros).to(torch.bfloat16)


class Int4Part(nn.Module):
    """A layer that leaves its product to be made together with those that read the same input."""

    def __init__(self, product: _Int4Product, index: int, size: int) -> None:
        super().__init__()
        self.whole = product.layer  # of which there is one, whoever lists modules
        self.in_features, self.out_features = product.layer.in_features, size
        self._product, self._index = product, index

    def forward(self, x: Tensor) -> Tensor:
        """Return this layer's part of the product."""
        return self._product.part(x, self._index)


class _Int4Product(SharedProduct):
    """The product of one input with stacked layers."""

    def __init__(self, layer: Int4Linear, sizes: list[int]) -> None:
        super().__init__(sizes)
        self.layer = layer

    def whole(self, x: Tensor, *, traced: bool) -> Tensor:
        """Return the product with all of the layers."""
        out: Tensor = self.layer(x)
        return out


@torch.inference_mode(False)
def stack_int4(module: nn.Module) -> None:
    """Stack the layers of four bits that read the same input, in place."""
    for parent, names, layers in siblings(module):
        found = [layer for layer in layers if isinstance(layer, Int4Linear)]
        if len(found) == len(names) and len({_kind(layer) for layer in found}) == 1:
            _stack(parent, names, found)


def _kind(layer: Int4Linear) -> tuple[object, ...]:
    return layer.in_features, layer.width, len(layer.pairs), layer.bias is None


def _stack(parent: nn.Module, names: tuple[str, ...], layers: list[Int4Linear]) -> None:
    sizes = [layer.out_features for layer in layers]
    whole = layers[0]
    whole.qweight = torch.cat([layer.qweight for layer in layers])
    whole.pairs = torch.cat([layer.pairs for layer in layers], 1)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    whole.bias = torch.cat(biases) if biases else None
    whole.out_features = sum(sizes)
    product = _Int4Product(whole, sizes)
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        setattr(parent, name, Int4Part(product, index, size))
