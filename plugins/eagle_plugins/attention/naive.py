"""Tree attention as it is defined, one entry of one head at a time; the kernels' reference.

Slow and plain on purpose: float64 throughout, nothing batched, and it reads lengths on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_attention"]


def naive_attention(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, tail: Tensor, scale: float
) -> Tensor:
    """Attend from the N new entries of each slot over the rows of the cache that they see.

    Args:
        query: ``[B, query_heads, N, head_dim]``.
        keys: ``[B, kv_heads, span, head_dim]``.
        values: the same shape.
        lengths: int64 ``[B]``, committed rows, which every entry sees.
        tail: bool ``[B, N, R]``; entry i sees row ``lengths[b] + r`` where ``tail[b, i, r]``.
        scale: factor on the scores before the softmax.

    Returns:
        float64 ``[B, N, query_heads, head_dim]``; entries that see nothing are zero.
    """
    slots, heads, nodes, head_dim = query.shape
    groups = heads // keys.shape[1]
    out = torch.zeros(slots, nodes, heads, head_dim, dtype=torch.float64, device=query.device)
    for slot, length in enumerate(lengths.tolist()):
        for node in range(nodes):
            allowed = tail[slot, node].nonzero().flatten()
            rows = torch.cat((torch.arange(length, device=query.device), length + allowed))
            for head in range(heads):
                key = keys[slot, head // groups, rows].double()
                value = values[slot, head // groups, rows].double()
                weights = (key @ query[slot, head, node].double() * scale).softmax(0)
                out[slot, node, head] = weights @ value
    return out
