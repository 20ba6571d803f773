"""Tree attention as it is defined, one entry of one head at a time; the kernels' reference.

Slow and plain on purpose: float64 throughout, nothing batched, and it reads lengths on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_attention"]


def naive_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    tail: Tensor,
    scale: float,
    *,
    positions: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend from the N new entries of each slot over the rows of the cache that they see.

    Args:
        query: ``[B, query_heads, N, head_dim]``.
        keys: ``[B, kv_heads, span, head_dim]``.
        values: the same shape.
        lengths: int64 ``[B]``, committed rows, which every entry sees.
        tail: bool ``[B, N, R]``; entry i sees row ``lengths[b] + r`` where ``tail[b, i, r]``.
        scale: factor on the scores before the softmax.
        positions: int64 ``[B, N]``, of the entries, whose rows are those of the tail; for a window.
        window: entries see only what is less than this many positions before them.
        softcap: c, where a score s becomes ``c * tanh(s / c)``.
        sinks: ``[query_heads]``, a score that takes part in the softmax and has no row.

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
            if window is not None and positions is not None:
                at = torch.cat((rows[:length], positions[slot, allowed]))
                rows = rows[at > positions[slot, node] - window]
            for head in range(heads):
                key = keys[slot, head // groups, rows].double()
                value = values[slot, head // groups, rows].double()
                scores = key @ query[slot, head, node].double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head, None].double()))
                out[slot, node, head] = scores.softmax(0)[: len(rows)] @ value
    return out
