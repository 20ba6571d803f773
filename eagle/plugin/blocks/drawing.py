"""Children drawn without replacement, a level at a time: in PyTorch, or in two kernels on CUDA.

It knows draft logits and the places of a level; it does not know how the tree goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import Drafter, Draws, Sampling, fusible, padded, probabilities, rows_of, top_k
from eagle.plugin.blocks.indices import LevelIndex

__all__ = ["draw_level", "likeliest", "race_level"]

_BLOCK = 1024  # logits that one program looks through
_MOST = 16  # of more siblings, drawing one after another takes longer than what is saved


def likeliest(level: LevelIndex, logits: Tensor) -> Tensor:
    """Return the continuations, int64 ``[B, C]``, of the ranks that a level names."""
    return top_k(logits, level.width)[1].flatten(1).index_select(1, level.best)


def race_level(
    level: LevelIndex, logits: Tensor, depth: int, drafter: Drafter, draws: Draws
) -> Tensor:
    """Return a level's children, int64 ``[B, C]``, by their position's noise (`Draws.race`).

    Where a slot is greedy, the likeliest.
    """
    weights = probabilities(logits, drafter.sampling)
    first = draws.race(weights, depth, level.width, drafter.draft_vocab)[0]
    raced = first.flatten(1).index_select(1, level.best)
    return raced.where(drafter.sampling.temperature[:, None] > 0, likeliest(level, logits))


def draw_level(
    level: LevelIndex, logits: Tensor, sampling: Sampling, above: Tensor, draws: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one level's children without replacement; where a slot is greedy, take the likeliest.

    Args:
        level: the level; no rank is skipped.
        logits: ``[B, W, V]``, draft logits of the nodes that have children.
        sampling: the slots' parameters.
        above: bool ``[B, C']``, which nodes of the level above exist.
        draws: the source of chance.

    Returns:
        Tokens int64 ``[B, C]``; bool ``[B, C]``, False where there was nothing left to draw; and
        the draft distributions ``[B, W, V]``.
    """
    if fusible(draws, logits, sampling) and level.width <= _MOST:
        tokens, exist, probs = _draw_level(
            logits,
            sampling.temperature,
            sampling.min_p,
            above,
            draws.read(level.best.shape[0]),
            level.parents,
            level.children,
            level.best.shape[0],
        )
        return tokens, exist, probs
    probs = probabilities(logits, sampling)
    sampled = sampling.temperature > 0
    real = above.index_select(1, level.parents) & sampled[:, None]
    left = probs.where(real[..., None], 0)
    tokens = level.best.new_zeros(probs.shape[0], level.best.shape[0])
    exist = torch.zeros_like(tokens, dtype=torch.bool)
    for children, slots in level.rounds:
        weights = left.index_select(1, slots)
        drawn = draws.categorical(weights)
        column = drawn[..., None]
        tokens = tokens.index_copy(1, children, drawn)
        exist = exist.index_copy(1, children, weights.gather(2, column)[..., 0] > 0)
        left = left.index_copy(1, slots, weights.scatter(2, column, 0.0))
    tokens = tokens.where(sampled[:, None], likeliest(level, logits))
    return tokens, exist | ~sampled[:, None], probs


@torch.library.custom_op("eagle::draw_level", mutates_args=())
def _draw_level(
    logits: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    above: Tensor,
    uniforms: Tensor,
    parents: Tensor,
    children: Tensor,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from eagle.plugin.blocks.drawing_triton import draw_rows, measure_blocks

    logits, above, uniforms = logits.contiguous(), above.contiguous(), rows_of(uniforms)
    slots, width, vocab = logits.shape
    rows, blocks, turns = slots * width, -(-vocab // _BLOCK), children.shape[1]
    double = logits.dtype == torch.float64

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    precision = torch.float64 if double else torch.float32
    tops = empty(rows, blocks, turns, dtype=precision)
    places = empty(rows, blocks, turns, dtype=torch.int32)
    sums = empty(rows, blocks, dtype=torch.float64)
    tokens = empty(slots, count, dtype=torch.int64)
    exist = empty(slots, count, dtype=torch.bool)
    probs = empty(slots, width, vocab, dtype=precision)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        measure_blocks[(blocks, rows)](
            logits, temperature, tops, places, sums, vocab, width, turns, _BLOCK, num_warps=4
        )
        draw_rows[(blocks + 1, rows)](
            logits, temperature, min_p, above, parents, children, uniforms, tops, places, sums,
            probs, tokens, exist, vocab, width, blocks, turns, above.stride(0), uniforms.stride(0),
            count, _BLOCK, padded(blocks), padded(turns), padded(blocks * turns), num_warps=4,
        )  # fmt: skip
    return tokens, exist, probs


@_draw_level.register_fake
def _(
    logits: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    above: Tensor,
    uniforms: Tensor,
    parents: Tensor,
    children: Tensor,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
    tokens = parents.new_empty(logits.shape[0], count)
    return (
        tokens,
        tokens.new_empty(tokens.shape, dtype=torch.bool),
        logits.new_empty(logits.shape, dtype=precision),
    )
