"""Tree attention through PyTorch's fused attention and a dense mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.plugin import BuildContext, Scores, Step, StrategyConfig
from eagle_plugins.attention.pieces import PiecesPlan

__all__ = ["Sdpa", "SdpaConfig", "SdpaPlan"]

SdpaPlan = Tensor | PiecesPlan
"""The additive mask, or one for every piece of a packed pass."""


class SdpaConfig(StrategyConfig):
    """`sdpa` has no settings."""


class Sdpa:
    """Reads the whole span of the cache for every query; right everywhere, fastest nowhere."""

    capturable = True
    modifiers = frozenset({"window", "softcap", "sinks"})
    packs = True

    def __init__(self, config: SdpaConfig, context: BuildContext) -> None:
        pass

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return None: everything is supported."""
        return None

    def plan(
        self,
        step: Step,
        query_heads: int,
        kv_heads: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> SdpaPlan:
        """Return the additive mask ``[B, 1, (query_heads / kv_heads) * N, span]``.

        Of a packed pass, one for every piece.

        Query heads that share a KV head are stacked along the queries, so that keys and values
        are read once and never repeated. The mask is additive because PyTorch's CPU kernel would
        convert a boolean one again in every layer.
        """
        if step.segments is not None:
            return PiecesPlan.of(self, step, query_heads, kv_heads, dtype, window)
        mask = step.mask(window)
        additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        additive.masked_fill_(~mask, -torch.inf)
        return additive.repeat(1, 1, query_heads // kv_heads, 1)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: SdpaPlan,
        scaling: float,
        scores: Scores | None = None,
    ) -> Tensor:
        """See `eagle.plugin.AttentionBackend.attend`."""
        if isinstance(plan, PiecesPlan):
            return plan.attend(self, query, keys, values, scaling, scores)
        slots, heads, nodes, size = query.shape
        stacked = query.reshape(slots, keys.shape[1], -1, size)
        if scores is None:
            out = F.scaled_dot_product_attention(
                stacked, keys, values, attn_mask=plan, scale=scaling
            )
        else:
            out = _written_out(stacked, keys, values, plan, scaling, scores)
        return out.reshape(slots, heads, nodes, -1).transpose(1, 2)


def _written_out(
    query: Tensor, keys: Tensor, values: Tensor, plan: Tensor, scaling: float, scores: Scores
) -> Tensor:
    """Attend by plain operators, which caps and sinks need: PyTorch's fused attention has neither.

    Scores are rounded as the products that make them are, and the softmax is of float32 at least.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    found = (query @ keys.transpose(2, 3)).to(wide) * scaling
    if scores.softcap is not None:
        found = torch.tanh(found / scores.softcap) * scores.softcap
    found = found + plan
    best = found.amax(-1, keepdim=True)
    if scores.sinks is None:
        weights = torch.exp(found - best)
        total = weights.sum(-1, keepdim=True)
    else:
        nodes = query.shape[2] * keys.shape[1] // scores.sinks.shape[0]
        sinks = scores.sinks.to(wide).view(1, keys.shape[1], -1).repeat_interleave(nodes, 2)
        best = torch.maximum(best, sinks[..., None])
        weights = torch.exp(found - best)
        total = weights.sum(-1, keepdim=True) + torch.exp(sinks[..., None] - best)
    return (weights / total).to(values.dtype) @ values
