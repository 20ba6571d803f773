"""Small Triton kernels of the cycle: moving cache rows, finding the largest logits, drawing.

Each stands for a chain of PyTorch's kernels whose launches take longer than their work. Imported
only where Triton is; `eagle.cache.compaction`, `eagle.kernels.topk` and `eagle.kernels.drawing`
say what they compute.
"""

import triton
import triton.language as tl

__all__ = [
    "best_of_blocks",
    "best_of_row",
    "draw_from_row",
    "find",
    "load_logits",
    "move_rows",
    "sum_blocks",
    "weigh",
]


@triton.jit
def move_rows(
    addresses,
    example,
    lengths,
    path,
    table,
    head_stride,
    rows,
    page: tl.constexpr,
    depth: tl.constexpr,
    size: tl.constexpr,
    padded: tl.constexpr,
):
    """Move the rows of one store, slot and head; moves of one program come in order."""
    store, slot, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    base = tl.load(addresses + store).to(tl.pointer_type(example.dtype.element_ty))
    base += head.to(tl.int64) * head_stride
    first = tl.load(lengths + slot)
    column = tl.arange(0, padded)
    for level in range(1, depth + 1):
        # An accepted node's number is never below its depth, so no row that is still to be
        # moved is written over.
        source = first + tl.load(path + slot * (depth + 1) + level)
        target = first + level
        if page:
            blocks = table + slot * (rows // page)
            source = tl.load(blocks + source // page).to(tl.int64) * page + source % page
            target = tl.load(blocks + target // page).to(tl.int64) * page + target % page
        else:
            source += slot.to(tl.int64) * rows
            target += slot.to(tl.int64) * rows
        row = tl.load(base + source * size + column, mask=column < size)
        tl.store(base + target * size + column, row, mask=column < size)


@triton.jit
def best_of_blocks(logits, values, indices, vocab, k: tl.constexpr, block: tl.constexpr):
    """Write the k largest of one block of a row, the first of equals first."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * block + tl.arange(0, block)
    x = tl.load(
        logits + row.to(tl.int64) * vocab + column, mask=column < vocab, other=-float("inf")
    )
    x = x.to(tl.float32)
    x = tl.where(x != x, float("inf"), x)  # as PyTorch has it, NaN is the largest
    out = (row * tl.num_programs(1) + part) * k
    for rank in range(k):
        best, place = tl.max(x, axis=0, return_indices=True)
        tl.store(values + out + rank, best)
        tl.store(indices + out + rank, part * block + place)
        x = tl.where(tl.arange(0, block) == place, -float("inf"), x)


@triton.jit
def best_of_row(
    values, indices, logits, best_values, best_indices, vocab, count,
    k: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Write the k largest of a row, given those of its blocks."""
    row = tl.program_id(0)
    place = tl.arange(0, padded)
    x = tl.load(values + row * count + place, mask=place < count, other=-float("inf"))
    index = tl.load(indices + row * count + place, mask=place < count, other=0)
    for rank in range(k):
        _, first = tl.max(x, axis=0, return_indices=True)
        token = tl.sum(tl.where(place == first, index, 0), axis=0)
        # The logit itself: NaN has been taken for infinity.
        value = tl.load(logits + row.to(tl.int64) * vocab + token)
        tl.store(best_values + row * k + rank, value)
        tl.store(best_indices + row * k + rank, token.to(tl.int64))
        x = tl.where(place == first, -float("inf"), x)


@triton.jit
def sum_blocks(weights, sums, vocab, block: tl.constexpr):
    """Write the sum of one block of a row, in float64."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * block + tl.arange(0, block)
    x = tl.load(weights + row.to(tl.int64) * vocab + column, mask=column < vocab, other=0.0)
    tl.store(sums + row * tl.num_programs(1) + part, tl.sum(x.to(tl.float64), axis=0))


@triton.jit
def draw_from_row(
    weights, sums, uniforms, drawn, vocab, count, block: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Write the index that a uniform picks from a row, given the sums of its blocks."""
    row = tl.program_id(0)
    place = tl.arange(0, padded)
    mass = tl.load(sums + row * count + place, mask=place < count, other=0.0)
    threshold = tl.load(uniforms + row) * tl.sum(mass, axis=0)
    part = find(mass, threshold, 0.0, place, padded)
    before = tl.sum(tl.where(place < part, mass, 0.0), axis=0)
    within = tl.arange(0, block)
    column = part * block + within
    x = tl.load(weights + row.to(tl.int64) * vocab + column, mask=column < vocab, other=0.0)
    index = find(x.to(tl.float64), threshold, before, within, block)
    tl.store(drawn + row, (part * block + index).to(tl.int64))


@triton.jit
def find(weights, threshold, before, place, size: tl.constexpr):
    """Return the first place of positive weight where the sum of weights exceeds a threshold.

    The sum starts from *before*. Rounding may leave no such place; then it is the last of
    positive weight, and 0 where there is none.
    """
    over = (before + tl.cumsum(weights, axis=0) > threshold) & (weights > 0)
    first = tl.min(tl.where(over, place, size), axis=0)
    last = tl.max(tl.where(weights > 0, place, -1), axis=0)
    return tl.minimum(first, tl.maximum(last, 0))


@triton.jit
def load_logits(row, column, vocab):
    """Load logits of a row, -inf beyond its end; as float64 if they are, else as float32."""
    x = tl.load(row + column, mask=column < vocab, other=-float("inf"))
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x


@triton.jit
def weigh(row, column, vocab, top, best, temperature, least):
    """Return weights, the largest of a row 1: `eagle.plugin.probabilities`, not normalised.

    Args:
        row: the row of logits.
        column: which of its weights.
        vocab: how many it has; there is no weight beyond.
        top: its largest logit.
        best: where that stands first; looked at where the temperature is 0.
        temperature: of the slot.
        least: the slot's min-p.
    """
    x = load_logits(row, column, vocab)
    if temperature > 0:
        weights = tl.exp((x - top) / temperature)
        # Not the other way round: NaN is to be left out, so that a row of it has no mass.
        weights = tl.where(weights >= least, weights, 0.0)
    else:
        weights = tl.where(column == best, 1.0, 0.0) + 0 * top
    return weights
