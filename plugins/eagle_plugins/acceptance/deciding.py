"""The speculative rule as one operator of two kernels; knows tensors, not who made them."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import (
    KNOWN_LAWS,
    Acceptance,
    Law,
    TargetProbs,
    TokenTree,
    TreeShape,
    UniformDraws,
    padded,
    rows_of,
)

__all__ = ["accept", "serves"]

_BLOCK = 1024  # weights that are added up before the sum is noted
_TILE = 8  # blocks that a program goes through at once
_WARPS = 32


def serves(tree: TokenTree) -> bool:
    """Return whether the kernels know this tree's laws: one for all nodes, of those known here."""
    return not tree.laws and tree.law in KNOWN_LAWS


def accept(
    tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: UniformDraws
) -> Acceptance:
    """Do what `SpeculativeRule.accept` does in PyTorch, on the same uniforms."""
    in_turn = not tree.law.fixed
    uniforms = draws.read(shape.depth * (shape.siblings if in_turn else 1) + 1)
    given = (tree.draft_probs, tree.draft_rows, tree.sampled)
    drafted = in_turn and all(tensor is not None for tensor in given)
    if drafted and tree.draft_probs is not None:  # the latter for the type checker
        ids, drawn_from = tree.draft_vocab, tree.draft_probs.shape[-1]
        known = target.logits.shape[-1] if ids is None else ids.shape[0]
        if drawn_from != known:
            whose = "the target" if ids is None else "their vocabulary"
            raise ValueError(
                f"the tree's draft distributions have {drawn_from} tokens, {whose} {known}"
            )
    path, count, bonus = _accept(
        target.logits,
        target.sampling.temperature,
        target.sampling.min_p,
        tree.tokens,
        tree.parents,
        tree.depths,
        tree.ranks,
        tree.draft_probs if drafted else None,
        tree.draft_rows if drafted else None,
        tree.sampled if drafted else None,
        uniforms,
        shape.depth,
        shape.siblings,
        in_turn,
        tree.law == Law.WITHOUT_REPLACEMENT,
        tree.draft_vocab if drafted else None,
    )
    return Acceptance(path, count, bonus)


@torch.library.custom_op("eagle::accept", mutates_args=())
def _accept(
    logits: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ranks: Tensor,
    drafts: Tensor | None,
    rows: Tensor | None,
    sampled: Tensor | None,
    uniforms: Tensor,
    levels: int,
    siblings: int,
    in_turn: bool,
    distinct: bool,
    draft_vocab: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    from eagle_plugins.acceptance.kernels import decide, walk

    slots, nodes, vocab = logits.shape
    blocks = -(-vocab // _BLOCK)
    # A static tree's are one row for all slots, which need not be copied.
    tokens, parents, depths, ranks = map(rows_of, (tokens, parents, depths, ranks))
    drafts = logits if drafts is None else drafts.contiguous()
    drafted, given = sampled is not None, parents if rows is None else rows_of(rows)
    uniforms = rows_of(uniforms)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    # Where a token of the target stands among the drafts', and -1 where it does not.
    places = tokens
    if draft_vocab is not None:
        places = torch.full((vocab,), -1, dtype=torch.int32, device=logits.device)
        order = torch.arange(draft_vocab.shape[0], dtype=torch.int32, device=logits.device)
        places.index_copy_(0, draft_vocab, order)
    chosen, drawn = (empty(slots, nodes, dtype=torch.int32) for _ in range(2))
    path = empty(slots, levels + 1, dtype=torch.int64)
    count, bonus = (empty(slots, dtype=torch.int64) for _ in range(2))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        decide[(nodes, slots)](
            logits.contiguous(), temperature, min_p, tokens, parents, depths, ranks, drafts,
            given, temperature if sampled is None else sampled, places, uniforms,
            empty(slots, nodes, blocks, dtype=torch.float64),
            empty(slots, nodes, max(siblings, 1), dtype=torch.int32),
            chosen, drawn, vocab, blocks, nodes, levels, siblings, drafts.shape[1],
            drafts.shape[2],
            tokens.stride(0), parents.stride(0), depths.stride(0), ranks.stride(0),
            given.stride(0), uniforms.stride(0),
            in_turn, drafted, distinct, draft_vocab is not None, padded(nodes), padded(blocks),
            min(_TILE, padded(blocks)), _BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        walk[(slots,)](chosen, drawn, path, count, bonus, nodes, levels, num_warps=1)
    return path, count, bonus


@_accept.register_fake
def _(
    logits: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ranks: Tensor,
    drafts: Tensor | None,
    rows: Tensor | None,
    sampled: Tensor | None,
    uniforms: Tensor,
    levels: int,
    siblings: int,
    in_turn: bool,
    distinct: bool,
    draft_vocab: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    slots = logits.shape[0]
    one = tokens.new_empty(slots)
    return tokens.new_empty(slots, levels + 1), one, one.clone()
