"""The parts of a Llama decoder layer as draft heads have it; no cache, no target.

Module names follow the published checkpoints, so that a state dict needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attend", "LlamaAttention", "LlamaMLP", "normed", "rotated"]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, query [B, heads, T, d], keys [B, kv_heads, T, d], values) -> [B, T, heads, d]``."""


class LlamaAttention(nn.Module):
    """Llama's, whose input may be several vectors of size H side by side."""

    def __init__(self, config: Any, number: int, inputs: int = 1) -> None:
        super().__init__()
        size, bias = config.hidden_size, bool(getattr(config, "attention_bias", False))
        inputs_bias = bias or bool(getattr(config, "qkv_bias", False))  # Qwen2's, without o's
        self.number = number
        self.head_dim = getattr(config, "head_dim", None) or size // config.num_attention_heads
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(inputs * size, self.heads * self.head_dim, bias=inputs_bias)
        self.k_proj = nn.Linear(inputs * size, self.kv_heads * self.head_dim, bias=inputs_bias)
        self.v_proj = nn.Linear(inputs * size, self.kv_heads * self.head_dim, bias=inputs_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, size, bias=bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Attend from x, ``[B, T, inputs * H]``; returns ``[B, T, H]``."""

        def split(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:-1], -1, self.head_dim).transpose(1, 2)

        query, keys = split(self.q_proj(x)), split(self.k_proj(x))
        query, keys = rotated(query, cos, sin), rotated(keys, cos, sin)
        attended = attend(self.number, query, keys, split(self.v_proj(x)))
        out: Tensor = self.o_proj(attended.flatten(2))
        return out

    def tp_plan(self, count: int) -> dict[str, str]:
        """Return how its linear layers are cut over *count* processes, each with whole heads.

        Returns:
            Styles of transformers' plans for tensor parallelism; empty if heads do not share out.
        """
        if self.heads % count or self.kv_heads % count:
            return {}
        return dict.fromkeys(("q_proj", "k_proj", "v_proj"), "colwise") | {"o_proj": "rowwise"}

    def divide(self, count: int) -> None:
        """Have the heads of one of *count* processes."""
        self.heads, self.kv_heads = self.heads // count, self.kv_heads // count


class LlamaMLP(nn.Module):
    """Llama's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, H]`` of the same."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out

    def tp_plan(self, count: int) -> dict[str, str]:
        """Return how its linear layers are cut over processes, as `LlamaAttention.tp_plan` does."""
        return {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}

    def divide(self, count: int) -> None:
        """Nothing else follows the share that one process has."""


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Return what a norm makes of x, in the dtype of the norm's weights."""
    # Of one dtype already, except in training in half precision, where weights are float32.
    out: Tensor = norm(x.to(norm.weight.dtype))
    return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of the Llama family."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]
