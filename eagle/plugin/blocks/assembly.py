"""A token tree from nothing but tokens and parents; knows no head and no law but top-k."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import TokenTree, ancestor_mask

__all__ = ["keep_best", "tree_of"]


def tree_of(tokens: Tensor, parents: Tensor, depth: int) -> TokenTree:
    """Return a tree of candidates that no chance was involved in (`Law.TOP_K`).

    Args:
        tokens: int64 ``[B, N]``, the root's first, parents before children.
        parents: int64 ``[B, N]``, each node's parent; -1 of the root and of padding.
        depth: of the deepest node that there may be.

    Returns:
        The tree; siblings are ranked in the order in which they stand.

    >>> tree = tree_of(torch.tensor([[7, 8, 9, 8]]), torch.tensor([[-1, 0, 0, 1]]), 2)
    >>> tree.depths.tolist(), tree.ranks.tolist()
    ([[0, 1, 1, 2]], [[0, 0, 1, 0]])
    """
    ancestors = ancestor_mask(parents, depth)
    siblings = (parents[:, :, None] == parents[:, None]) & (parents >= 0)[:, None]
    return TokenTree(
        tokens=tokens,
        parents=parents,
        depths=ancestors.sum(2) - 1,
        ranks=siblings.tril(-1).sum(2),
        ancestors=ancestors,
    )


def keep_best(
    root: Tensor, tokens: Tensor, values: Tensor, parents: Tensor, nodes: int, depth: int
) -> TokenTree:
    """Return the tree of the candidates of highest value, as EAGLE-2 keeps them (`Law.TOP_K`).

    Args:
        root: int64 ``[B]``, the last committed tokens.
        tokens: int64 ``[B, C]``, all candidates: parents before children, siblings by value.
        values: ``[B, C]``; no child's is above its parent's, so that what is kept is connected.
        parents: int64 ``[B, C]``, each candidate's parent among the candidates, -1 for the root.
        nodes: how many are kept, of at least as many.
        depth: of the deepest candidate.

    Returns:
        A tree of ``1 + nodes`` nodes.
    """
    # Stable, so that of equal values the parent's comes first; then parents before children again.
    kept = values.sort(descending=True, stable=True).indices[:, :nodes].sort().values
    order = torch.arange(1, nodes + 1, device=kept.device).expand_as(kept)
    # Candidate c is node `place[c + 1]`, and candidate -1 is the root.
    place = torch.zeros_like(tokens[:, :1]).expand(-1, tokens.shape[1] + 1)
    place = place.scatter(1, kept + 1, order)
    above = place.gather(1, parents.gather(1, kept) + 1)
    return tree_of(
        torch.cat((root[:, None], tokens.gather(1, kept)), 1),
        torch.cat((torch.full_like(root, -1)[:, None], above), 1),
        depth,
    )
