"""What EAGLE-3's networks and those made after them share: an FC over joined features, and a layer
over pairs of embedding and hidden state. No cache, no target.

Module names follow the published checkpoints, so that a state dict needs no conversion.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from eagle.plugin.blocks.heads.layer import Attend, LlamaAttention, LlamaMLP, normed

__all__ = ["FCNorms", "JoinsFeatures", "PairLayer"]

FCNorms = Literal["none", "joined", "each"]
"""In front of the FC: none (EAGLE-3), or one over all layers side by side or one each (3.1)."""


class JoinsFeatures(nn.Module):
    """``fc``, with the norms in front of it: hidden states of several of the target's.

    Args:
        joined: how many hidden states the FC joins.
        target_size: Ht, of each.
        size: H, of what it makes of them.
        norms: in front of the FC.
        eps: of the norms.
    """

    def __init__(
        self, joined: int, target_size: int, size: int, norms: FCNorms, eps: float
    ) -> None:
        super().__init__()
        if norms == "joined":
            self.input_norm = nn.RMSNorm(joined * target_size, eps=eps)
        elif norms == "each":
            self.fc_norm = nn.ModuleList([nn.RMSNorm(target_size, eps=eps) for _ in range(joined)])
        self.norms, self.joined = norms, joined
        self.fc = nn.Linear(joined * target_size, size, bias=False)

    def fuse(self, features: Tensor) -> Tensor:
        """Return hidden states ``[B, T, H]`` of the target's features ``[B, T, joined * Ht]``."""
        if self.norms == "joined":
            features = normed(self.input_norm, features)
        elif self.norms == "each":
            pairs = zip(self.fc_norm, features.chunk(self.joined, dim=-1), strict=True)
            features = torch.cat([normed(norm, part) for norm, part in pairs], dim=-1)  # type: ignore[arg-type]
        out: Tensor = self.fc(features)
        return out


class PairLayer(nn.Module):
    """A Llama layer whose attention sees embedding and hidden state side by side.

    Args:
        config: a Llama configuration (`transformers.LlamaConfig`).
        norm_before_residual: whether the residual is the normed hidden state, not the hidden state.
        attention: its attention block's class.
    """

    def __init__(
        self,
        config: Any,
        norm_before_residual: bool,
        attention: type[LlamaAttention] = LlamaAttention,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = norm_before_residual
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.self_attn = attention(config, 0, 2)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        """Return ``[B, T, H]`` of embeddings and hidden states of that shape."""
        inner = normed(self.hidden_norm, hidden)
        x = inner if self.norm_before_residual else hidden
        both = torch.cat((normed(self.input_layernorm, embedded), inner), dim=-1)
        x = x + self.self_attn(both, cos, sin, attend)
        out: Tensor = x + self.mlp(normed(self.post_attention_layernorm, x))
        return out
