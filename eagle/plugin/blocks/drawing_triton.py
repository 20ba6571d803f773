"""The Triton kernels of drafting without replacement; `drawing` says what they compute.

A level takes two: `measure_blocks` looks through all logits in parallel; then `draw_rows` has, for
each node, one program that draws its children and one for each block of its distribution.
"""

import triton
import triton.language as tl

from eagle.kernels.sampling_triton import find, load_logits, weigh

__all__ = ["draw_rows", "measure_blocks"]


@triton.jit
def measure_blocks(
    logits, temperature, tops, places, sums, vocab, width, turns, block: tl.constexpr
):  # fmt: skip
    """Write what one block of a row adds to its softmax, or its largest logits if greedy.

    Args:
        logits: ``[B, W, V]``.
        temperature: float32 ``[B]``.
        tops: ``[B, W, blocks, turns]``, out: the block's largest logit first; if greedy, the next
            ones too.
        places: int32, the same shape, out: where these stand, if greedy.
        sums: float64 ``[B, W, blocks]``, out: the sum of exponentials of distances from the
            largest logit, unless greedy.
        vocab: V.
        width: W.
        turns: the most children of one node.
        block: how many logits there are in a block.
    """
    part, row = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature + row // width)
    column = part * block + tl.arange(0, block)
    x = load_logits(logits + row.to(tl.int64) * vocab, column, vocab)
    at = row * tl.num_programs(0) + part
    if heat > 0:
        top = tl.max(x, axis=0)
        shift = tl.where(top == -float("inf"), 0.0, top)
        # NaN and infinity in a block make its sum NaN.
        tl.store(tops + at * turns, top)
        tl.store(sums + at, tl.sum(tl.exp((x - shift) / heat).to(tl.float64), axis=0))
    else:
        x = tl.where(x != x, float("inf"), x)  # as PyTorch has it, NaN is the largest
        # What has been taken is below all that has not, which may be -inf.
        x = tl.where(column < vocab, tl.maximum(x, -3e38), -float("inf"))
        for turn in range(turns):
            top, place = tl.max(x, axis=0, return_indices=True)
            tl.store(tops + at * turns + turn, top)
            tl.store(places + at * turns + turn, part * block + place)
            x = tl.where(tl.arange(0, block) == place, -float("inf"), x)


@triton.jit
def draw_rows(
    logits,
    temperature,
    min_p,
    above,
    parents,
    children,
    uniforms,
    tops,
    places,
    sums,
    probs,
    tokens,
    exist,
    vocab,
    width,
    blocks,
    turns,
    above_stride,
    uniform_stride,
    count,
    block: tl.constexpr,
    padded_blocks: tl.constexpr,
    padded_turns: tl.constexpr,
    padded_tops: tl.constexpr,
):
    """Write one block of a row's draft distribution; or, as the first program, its children.

    Args: those of `eagle.plugin.blocks.drawing`, what `measure_blocks` wrote, and
        probs: ``[B, W, V]``, out.
        tokens: int64 ``[B, C]``, out.
        exist: bool ``[B, C]``, out.
        count: C, how many nodes the level has.
    """
    part, row = tl.program_id(0) - 1, tl.program_id(1)
    slot, own = row // width, row % width
    heat, least = tl.load(temperature + slot), tl.load(min_p + slot)
    logits += row.to(tl.int64) * vocab
    probs += row.to(tl.int64) * vocab
    tops += row * blocks * turns
    places += row * blocks * turns
    sums += row * blocks
    children += own * turns * 2
    tokens += slot * count
    exist += slot * count
    column = part * block + tl.arange(0, block)
    if heat > 0:
        top, mass = _measure(
            logits, tops, sums, heat, least, vocab, blocks, turns, block, padded_blocks
        )
        if part >= 0:
            weights = weigh(logits, column, vocab, top, 0, heat, least)
            weights /= tl.sum(mass, axis=0).to(weights.dtype)
            tl.store(probs + column, weights, mask=column < vocab)
        else:
            real = tl.load(above + slot * above_stride + tl.load(parents + own))
            mass = tl.where(real, mass, 0.0)
            uniforms += slot * uniform_stride
            _draw(
                logits, mass, children, uniforms, tokens, exist, top, heat, least, vocab, turns,
                block, padded_blocks, padded_turns,
            )  # fmt: skip
    else:
        if part >= 0:
            place = tl.arange(0, padded_blocks)
            known = place < blocks
            high = tl.load(tops + place * turns, mask=known, other=-float("inf"))
            _, first = tl.max(high, axis=0, return_indices=True)
            best = tl.load(places + first * turns)
            top = load_logits(logits, best, vocab)
            weights = tl.where(column == best, 1.0, 0.0) + 0 * top  # NaN stays visible
            tl.store(probs + column, weights, mask=column < vocab)
        else:
            _rank(tops, places, children, tokens, exist, blocks, turns, padded_tops)


@triton.jit
def _measure(
    logits, tops, sums, heat, least, vocab, blocks, turns, block: tl.constexpr, padded: tl.constexpr
):
    """Return a row's largest logit, and the float64 sums of the weights in its blocks."""
    place = tl.arange(0, padded)
    known = place < blocks
    high = tl.load(tops + place * turns, mask=known, other=-float("inf"))
    top = tl.max(high, axis=0)
    mass = tl.load(sums + place, mask=known, other=0.0)
    # In the precision of the weights, so that a block has mass only if one of them is positive.
    mass *= tl.exp((high - top) / heat).to(tl.float64)
    if least > 0:
        # What falls below min-p is known only now.
        for part in range(blocks):
            column = part * block + tl.arange(0, block)
            weights = weigh(logits, column, vocab, top, 0, heat, least)
            kept = tl.sum(weights.to(tl.float64), axis=0)
            mass = tl.where(place == part, kept + 0 * mass, mass)  # NaN stays
    return top, mass


@triton.jit
def _draw(
    logits, mass, children, uniforms, tokens, exist, top, heat, least, vocab, turns,
    block: tl.constexpr, padded_blocks: tl.constexpr, padded_turns: tl.constexpr,
):  # fmt: skip
    """Draw a node's children one after another, each without those before."""
    place, lane = tl.arange(0, padded_blocks), tl.arange(0, block)
    order = tl.arange(0, padded_turns)
    drawn = tl.full([padded_turns], -1, tl.int32)
    for turn in range(turns):
        child = tl.load(children + turn * 2)
        if child >= 0:
            uniform = tl.load(uniforms + tl.load(children + turn * 2 + 1)).to(tl.float64)
            whole = tl.sum(mass, axis=0)
            threshold = uniform * whole
            part = find(mass, threshold, 0.0, place, padded_blocks)
            threshold -= tl.sum(tl.where(place < part, mass, 0.0), axis=0)
            own = tl.sum(tl.where(place == part, mass, 0.0), axis=0)
            column = part * block + lane
            weights = weigh(logits, column, vocab, top, 0, heat, least)
            gone = tl.max((column[:, None] == drawn[None, :]).to(tl.int32), axis=1) > 0
            weights = tl.where(gone, 0.0, weights).to(tl.float64)
            # The block's mass was added up otherwise, so it is its share that decides.
            found = tl.sum(weights, axis=0)
            threshold *= found / tl.where(own > 0, own, 1.0)
            index = find(weights, threshold, 0.0, lane, block)
            token = part * block + index
            # A row without mass is NaN, has nothing left, or belongs to a node that is padding.
            possible = (whole > 0) & (found > 0)
            tl.store(tokens + child, tl.where(possible, token, 0).to(tl.int64))
            tl.store(exist + child, possible)
            drawn = tl.where(order == turn, token, drawn)
            rest = tl.sum(tl.where(lane == index, 0.0, weights), axis=0)
            mass = tl.where(place == part, tl.where(possible, rest, 0.0), mass)


@triton.jit
def _rank(tops, places, children, tokens, exist, blocks, turns, padded: tl.constexpr):
    """Write the likeliest continuations of a node as its children."""
    order = tl.arange(0, padded)
    known = order < blocks * turns
    high = tl.load(tops + order, mask=known, other=-float("inf"))
    index = tl.load(places + order, mask=known, other=0)
    for turn in range(turns):
        _, first = tl.max(high, axis=0, return_indices=True)
        child = tl.load(children + turn * 2)
        if child >= 0:
            token = tl.sum(tl.where(order == first, index, 0), axis=0)
            tl.store(tokens + child, token.to(tl.int64))
            tl.store(exist + child, True)
        high = tl.where(order == first, -float("inf"), high)
