"""The network of a P-EAGLE drafter (arXiv 2602.01469): EAGLE-3's layer, and further ones behind it.

Module names follow vllm-project/speculators (``src/speculators/models/peagle/core.py``,
``models/eagle3``), so that a state dict needs no conversion. No cache, no target.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from eagle.plugin import Attend, LlamaAttention, LlamaMLP, normed
from eagle_strategies.drafters.block_network import NormedAttention, PlainLayer

__all__ = ["FCNorms", "PEagleNetwork"]

FCNorms = Literal["none", "joined", "each"]
"""In front of the FC: none, one over all layers side by side, or one for each."""


class _First(nn.Module):
    """A layer whose attention sees embedding and hidden state side by side."""

    def __init__(
        self, config: Any, attention: type[LlamaAttention], norm_before_residual: bool
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
        inner = normed(self.hidden_norm, hidden)
        x = inner if self.norm_before_residual else hidden
        both = torch.cat((normed(self.input_layernorm, embedded), inner), dim=-1)
        x = x + self.self_attn(both, cos, sin, attend)
        out: Tensor = x + self.mlp(normed(self.post_attention_layernorm, x))
        return out


class PEagleNetwork(nn.Module):
    """Layers over pairs of a token and a feature, or of the mask token and ``mask_hidden``.

    Args:
        config: a Llama configuration (`transformers.LlamaConfig`), H its hidden size.
        joined: how many of the target's hidden states the FC joins.
        vocab: Vd.
        norms: in front of the FC.
        norm_before_residual: whether the first layer's residual is the normed hidden state.
        head_norms: whether queries and keys are normed, as Qwen3's are.
    """

    def __init__(
        self,
        config: Any,
        *,
        joined: int,
        vocab: int,
        norms: FCNorms,
        norm_before_residual: bool,
        head_norms: bool,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        attention = NormedAttention if head_norms else LlamaAttention
        self.joined = joined
        if norms == "joined":
            self.input_norm = nn.RMSNorm(joined * size, eps=eps)
        elif norms == "each":
            self.fc_norm = nn.ModuleList([nn.RMSNorm(size, eps=eps) for _ in range(joined)])
        self.norms = norms
        self.fc = nn.Linear(joined * size, size, bias=False)
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, joined * size))
        further = (
            PlainLayer(config, number, attention) for number in range(1, config.num_hidden_layers)
        )
        self.layers = nn.ModuleList([_First(config, attention, norm_before_residual), *further])
        self.norm = nn.RMSNorm(size, eps=eps)
        self.lm_head = nn.Linear(size, vocab, bias=False)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def attention(self) -> LlamaAttention:
        """The first attention block, for its numbers of heads and their size."""
        first: _First = self.layers[0]  # type: ignore[assignment]
        return first.self_attn

    def fuse(self, features: Tensor) -> Tensor:
        """Return hidden states ``[B, T, H]`` of features ``[B, T, joined * H]``."""
        if self.norms == "joined":
            features = normed(self.input_norm, features)
        elif self.norms == "each":
            pairs = zip(self.fc_norm, features.chunk(self.joined, dim=-1), strict=True)
            features = torch.cat([normed(norm, part) for norm, part in pairs], dim=-1)  # type: ignore[arg-type]
        out: Tensor = self.fc(features)
        return out

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        """Run the layers.

        Args:
            embedded: ``[B, T, H]``, embeddings of the tokens one step ahead.
            hidden: ``[B, T, H]``, of `fuse`.
            cos: ``[B, T, head_dim]``, rotary cosines.
            sin: ``[B, T, head_dim]``, rotary sines.
            attend: attention over whatever each entry may see, layer by layer.

        Returns:
            ``[B, T, H]``, the LM head's input.
        """
        x: Tensor = self.layers[0](embedded, hidden, cos, sin, attend)
        for layer in list(self.layers)[1:]:
            x = layer(x, cos, sin, attend)
        return normed(self.norm, x)
