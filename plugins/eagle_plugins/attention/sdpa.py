"""Tree attention through PyTorch's fused attention and a dense mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.plugin import BuildContext, Step, StrategyConfig

__all__ = ["Sdpa", "SdpaConfig"]


class SdpaConfig(StrategyConfig):
    """`sdpa` has no settings."""


class Sdpa:
    """Reads the whole span of the cache for every query; right everywhere, fastest nowhere."""

    capturable = True

    def __init__(self, config: SdpaConfig, context: BuildContext) -> None:
        pass

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return None: everything is supported."""
        return None

    def plan(self, step: Step, query_heads: int, kv_heads: int, dtype: torch.dtype) -> Tensor:
        """Return the additive mask ``[B, 1, (query_heads / kv_heads) * N, span]``.

        Query heads that share a KV head are stacked along the queries, so that keys and values
        are read once and never repeated. The mask is additive because PyTorch's CPU kernel would
        convert a boolean one again in every layer.
        """
        mask = step.mask()
        additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        additive.masked_fill_(~mask, -torch.inf)
        return additive.repeat(1, 1, query_heads // kv_heads, 1)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, plan: Tensor, scaling: float
    ) -> Tensor:
        """See `eagle.plugin.AttentionBackend.attend`."""
        slots, heads, nodes, size = query.shape
        stacked = query.reshape(slots, keys.shape[1], -1, size)
        out = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=plan, scale=scaling)
        return out.reshape(slots, heads, nodes, size).transpose(1, 2)
