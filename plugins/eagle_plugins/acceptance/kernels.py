"""The Triton kernels of the speculative rule; `scalar` and `speculative` say what they compute.

`decide` has one program for each node of each slot, which settles what comes next *if* the path
gets to its node: which child is accepted, or which token is drawn instead. None waits for another;
`walk` then follows from the root what they settled. Uniforms are read by their position, so it does
not matter that most of what is settled is never followed.

The residual after any number of rejections is a function of one number. Let e be the target's
weights, not normalised, and s q what is left of the draft for the next sibling. The residual is in
proportion to r = max(e - c q, 0), with c = 0 at first; after a rejection it is max(r / R - s q, 0),
R being the sum of r, so c grows by R s, and what was cut off at 0 stays there. So no vector is
kept: logits and draft are read again.

A draft may have a vocabulary of its own. Columns are the target's all the same: a draft is read
through a map from them, and q is 0 for a token that it does not have.
"""

import triton
import triton.language as tl

from eagle.plugin.triton import find, load_logits, weigh

__all__ = ["decide", "walk"]


@triton.jit
def decide(
    logits,
    temperature,
    min_p,
    tokens,
    parents,
    depths,
    ranks,
    drafts,
    rows,
    sampled,
    places,
    uniforms,
    sums,
    tried,
    chosen,
    drawn,
    vocab,
    blocks,
    nodes,
    levels,
    siblings,
    distributions,
    draft_size,
    token_stride,
    parent_stride,
    depth_stride,
    rank_stride,
    row_stride,
    uniform_stride,
    in_turn: tl.constexpr,
    drafted: tl.constexpr,
    distinct: tl.constexpr,
    mapped: tl.constexpr,
    padded_nodes: tl.constexpr,
    padded_blocks: tl.constexpr,
    lines: tl.constexpr,
    block: tl.constexpr,
):
    """Settle what follows one node of one slot.

    Args: those of `eagle_plugins.acceptance.deciding`, rows of a slot so many entries apart, and
        sums: float64 ``[B, N, blocks]``, scratch: sums of the blocks of what is left.
        tried: int32 ``[B, N, K]``, scratch: the tokens rejected so far.
        chosen: int32 ``[B, N]``, out: the child that is accepted, or -1.
        drawn: int32 ``[B, N]``, out: the token that comes where none is.
        in_turn: children are tried in turn; otherwise one has the token that is drawn, or none.
        drafted: there are draft distributions.
        distinct: siblings are, so what is left of a draft distribution is renormalised.
        mapped: drafts have a vocabulary of their own, and places says which of it a token is.
    """
    node, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if (node > 0) & (tl.load(parents + slot * parent_stride + node) < 0):
        return  # padding
    place = slot * nodes + node
    heat, least = tl.load(temperature + slot), tl.load(min_p + slot)
    depth = tl.load(depths + slot * depth_stride + node).to(tl.int32)
    row = logits + place * vocab
    draft, from_draft = row, node < 0
    if drafted:
        from_draft = tl.load(sampled + slot) != 0
        # A leaf's row is meaningless, hence the bounds.
        own = tl.load(rows + slot * row_stride + node)
        own = tl.minimum(tl.maximum(own, 0), distributions - 1)
        draft = drafts + (slot * distributions + own) * draft_size
    uniforms += slot * uniform_stride
    sums += place * blocks
    tried += place * siblings

    other = tl.arange(0, padded_nodes)
    known = other < nodes
    above = tl.load(parents + slot * parent_stride + other, mask=known, other=-1)
    below = (above == node) & (depth < levels)
    top, best = _best(row, vocab, lines * block)
    accepted = tl.full([], -1, tl.int32)
    rejected = tl.full([], 0, tl.int32)
    cut = tl.full([], 0.0, tl.float64)
    share = tl.full([], 1.0, tl.float64)
    mass, _ = _sum_up(
        row, draft, places, mapped, sums, tried, rejected, cut, top, best, heat, least, vocab,
        blocks, from_draft, lines, block,
    )  # fmt: skip
    if in_turn:
        order = tl.load(ranks + slot * rank_stride + other, mask=known, other=-1)
        left = tl.sum(below.to(tl.int32), axis=0)
        rank = tl.full([], 0, tl.int32)
        while (left > 0) & (rank < siblings):
            child = tl.min(tl.where(below & (order == rank), other, padded_nodes), axis=0)
            if child < padded_nodes:
                token = tl.load(tokens + slot * token_stride + child).to(tl.int32)
                uniform = tl.load(uniforms + depth * siblings + rank).to(tl.float64)
                weight, q = _left(
                    row, draft, places, mapped, tried, rejected, cut, token, top, best, heat, least,
                    vocab, from_draft,
                )  # fmt: skip
                weight = weight.to(tl.float64)
                full = mass * tl.where(from_draft, share * q, 1.0)
                left -= 1
                # The chance is weight / full. Not divided, 0 / 0 is none, and neither is NaN.
                if (uniform * full < weight) | ((weight >= full) & (weight > 0)):
                    accepted = child
                    left = 0
                else:
                    tl.store(tried + rejected, token)
                    tl.debug_barrier()
                    rejected += 1
                    further = tl.where(from_draft, cut + mass * share, cut)
                    remains, draft_mass = _sum_up(
                        row, draft, places, mapped, sums, tried, rejected, further, top, best, heat,
                        least, vocab, blocks, from_draft, lines, block,
                    )  # fmt: skip
                    if remains > 0:
                        cut, mass = further, remains
                    else:
                        # Nothing is left, by rounding: then nothing was to reject, and the target
                        # stays as it was. A draft of distinct siblings is without the token all
                        # the same.
                        tl.debug_barrier()
                        if distinct:
                            tl.store(tried + rejected - 1, -1 - token)
                        else:
                            rejected -= 1
                        tl.debug_barrier()
                        mass, _ = _sum_up(
                            row, draft, places, mapped, sums, tried, rejected, cut, top, best, heat,
                            least, vocab, blocks, from_draft, lines, block,
                        )  # fmt: skip
                    if distinct:
                        share = 1.0 / tl.where(draft_mass > 0, draft_mass, 1.0)
            rank += 1

    if accepted < 0:
        column = tl.minimum(depth, levels)
        if in_turn:
            column = levels * siblings
        tl.debug_barrier()
        token = _draw(
            row, draft, places, mapped, sums, tried, rejected, cut, top, best, heat, least, vocab,
            blocks, from_draft, tl.load(uniforms + column).to(tl.float64), padded_blocks, block,
        )  # fmt: skip
        tl.store(drawn + place, token)
        if not in_turn:
            word = tl.load(tokens + slot * token_stride + other, mask=known, other=-1)
            child = tl.min(tl.where(below & (word == token), other, padded_nodes), axis=0)
            accepted = tl.where(child < padded_nodes, child, -1)
    tl.store(chosen + place, accepted)


@triton.jit
def _best(row, vocab, size: tl.constexpr):
    """Return the largest logit of a row and where it stands first; NaN counts as infinity."""
    lane = tl.arange(0, size)
    high = load_logits(row, lane, vocab)
    high = tl.where(high != high, float("inf"), high)
    place = lane
    for first in range(size, vocab, size):
        x = load_logits(row, first + lane, vocab)
        x = tl.where(x != x, float("inf"), x)
        more = x > high
        high, place = tl.where(more, x, high), tl.where(more, first + lane, place)
    top = tl.max(high, axis=0)
    return top, tl.min(tl.where(high == top, place, vocab - 1), axis=0)


@triton.jit
def _left(
    row, draft, places, mapped: tl.constexpr, tried, rejected, cut, column, top, best, heat, least,
    vocab, from_draft,
):  # fmt: skip
    """Return what is left of target and draft, at columns of a row, after some rejections."""
    weights = weigh(row, column, vocab, top, best, heat, least)
    known, place = column < tl.where(from_draft, vocab, 0), column
    if mapped:
        place = tl.load(places + column, mask=known, other=-1)
        known = place >= 0
    q = tl.load(draft + place, mask=known, other=0.0)
    q = q.to(weights.dtype)
    # The draft of a node without children may be NaN, so it is not multiplied by zero.
    less = tl.maximum(weights - cut.to(weights.dtype) * q, 0.0)
    weights = tl.where(cut > 0, less, weights)
    for number in range(rejected):
        token = tl.load(tried + number)
        weights = tl.where(column == token, 0.0, weights)
        q = tl.where((column == token) | (column == -1 - token), 0.0, q)
    return weights, q


@triton.jit
def _sum_up(
    row, draft, places, mapped: tl.constexpr, sums, tried, rejected, cut, top, best, heat, least,
    vocab, blocks, from_draft, lines: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the sums of blocks of what is left of the target; return its sum, and the draft's."""
    line, lane = tl.arange(0, lines), tl.arange(0, block)
    mass = tl.full([lines], 0.0, tl.float64)
    draft_mass = tl.full([lines, block], 0.0, tl.float32)
    if row.dtype.element_ty == tl.float64:
        draft_mass = draft_mass.to(tl.float64)
    for first in range(0, blocks, lines):
        column = (first + line)[:, None] * block + lane[None, :]
        weights, q = _left(
            row, draft, places, mapped, tried, rejected, cut, column, top, best, heat, least, vocab,
            from_draft & (rejected > 0),
        )  # fmt: skip
        part = tl.sum(weights.to(tl.float64), axis=1)
        tl.store(sums + first + line, part, mask=first + line < blocks)
        mass += part
        draft_mass += q
    return tl.sum(mass, axis=0), tl.sum(tl.sum(draft_mass, axis=1).to(tl.float64), axis=0)


@triton.jit
def _draw(
    row, draft, places, mapped: tl.constexpr, sums, tried, rejected, cut, top, best, heat, least,
    vocab, blocks, from_draft, uniform, padded_blocks: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Return the token that a uniform picks from what is left of the target."""
    place, lane = tl.arange(0, padded_blocks), tl.arange(0, block)
    mass = tl.load(sums + place, mask=place < blocks, other=0.0)
    threshold = uniform * tl.sum(mass, axis=0)
    part = find(mass, threshold, 0.0, place, padded_blocks)
    before = tl.sum(tl.where(place < part, mass, 0.0), axis=0)
    weights, _ = _left(
        row, draft, places, mapped, tried, rejected, cut, part * block + lane, top, best, heat,
        least, vocab, from_draft & (rejected > 0),
    )  # fmt: skip
    return part * block + find(weights.to(tl.float64), threshold, before, lane, block)


@triton.jit
def walk(chosen, drawn, path, count, bonus, nodes, levels):
    """Follow from the root what `decide` settled, for one slot."""
    slot = tl.program_id(0)
    chosen += slot * nodes
    path += slot * (levels + 1)
    tl.store(path, tl.full([], 0, tl.int64))
    node = tl.full([], 0, tl.int32)
    length = tl.full([], 0, tl.int64)
    for level in range(1, levels + 1):
        child = tl.load(chosen + node)
        tl.store(path + level, tl.maximum(child, 0).to(tl.int64))
        # Where no child is accepted, none is on any further level.
        node = tl.where(child > 0, child, node)
        length += (child > 0).to(tl.int64)
    tl.store(count + slot, length)
    tl.store(bonus + slot, tl.load(drawn + slot * nodes + node).to(tl.int64))
