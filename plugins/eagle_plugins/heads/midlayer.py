"""The EAGLE-3 draft head as a network: FC, one layer over two inputs, norm and LM head of its own.

Module names follow the authors' checkpoints (SafeAILab/EAGLE, ``eagle/model/cnets.py``), so that a
state dict needs no conversion. No cache, no target.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from eagle.plugin import Attend, LlamaAttention, LlamaMLP, normed

__all__ = ["Eagle3Module", "Norms"]

Norms = Literal["none", "joined", "each"]
"""In front of the FC: none (EAGLE-3), or one over all layers side by side or one each (3.1)."""


class Eagle3Module(nn.Module):
    """``midlayer``: a Llama layer whose attention sees embedding and hidden state side by side.

    Args:
        config: a Llama configuration (`transformers.LlamaConfig`); H is its hidden size.
        target_size: Ht, the hidden size of the target.
        joined: how many of the target's hidden states the FC joins.
        draft_vocab: Vd.
        norms: in front of the FC.
        norm_before_residual: whether the residual is the normed hidden state, not the hidden state.
    """

    def __init__(
        self,
        config: Any,
        *,
        target_size: int,
        joined: int,
        draft_vocab: int,
        norms: Norms = "none",
        norm_before_residual: bool = False,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        if norms == "joined":
            self.input_norm = nn.RMSNorm(joined * target_size, eps=eps)
        elif norms == "each":
            self.fc_norm = nn.ModuleList([nn.RMSNorm(target_size, eps=eps) for _ in range(joined)])
        self.norms, self.joined = norms, joined
        self.fc = nn.Linear(joined * target_size, size, bias=False)
        self.midlayer = _MidLayer(config, norm_before_residual)
        self.norm = nn.RMSNorm(size, eps=eps)
        self.lm_head = nn.Linear(size, draft_vocab, bias=False)

    @property
    def depth(self) -> int:
        """One layer."""
        return 1

    @property
    def attention(self) -> LlamaAttention:
        """Its attention block, for its numbers of heads and their size."""
        return self.midlayer.self_attn

    def fuse(self, features: Tensor) -> Tensor:
        """Return hidden states ``[B, T, H]`` of the target's features ``[B, T, joined * Ht]``."""
        if self.norms == "joined":
            features = normed(self.input_norm, features)
        elif self.norms == "each":
            parts = features.chunk(self.joined, dim=-1)
            pairs = zip(self.fc_norm, parts, strict=True)
            features = torch.cat([normed(norm, part) for norm, part in pairs], dim=-1)  # type: ignore[arg-type]
        out: Tensor = self.fc(features)
        return out

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        """Run the layer.

        Args:
            embedded: ``[B, T, H]``, embeddings of the tokens one step ahead.
            hidden: ``[B, T, H]``: what `fuse` gave, or what this gave for the token before.
            cos: ``[B, T, head_dim]``, rotary cosines.
            sin: ``[B, T, head_dim]``, rotary sines.
            attend: attention over whatever each entry may see.

        Returns:
            ``[B, T, H]``, before the norm that is in front of the LM head.
        """
        out: Tensor = self.midlayer(embedded, hidden, cos, sin, attend)
        return out


class _MidLayer(nn.Module):
    def __init__(self, config: Any, norm_before_residual: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = norm_before_residual
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.self_attn = LlamaAttention(config, 0, inputs=2)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        inner = normed(self.hidden_norm, hidden)
        x = inner if self.norm_before_residual else hidden
        both = torch.cat((normed(self.input_layernorm, embedded), inner), dim=-1)
        x = x + self.self_attn(both, cos, sin, attend)
        out: Tensor = x + self.mlp(normed(self.post_attention_layernorm, x))
        return out
