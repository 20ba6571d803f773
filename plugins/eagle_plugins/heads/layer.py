"""The EAGLE draft head as a network: an FC and a decoder layer or more; no cache, no target.

Module names follow the published checkpoints, so that a state dict needs no conversion.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eagle.plugin import Attend, LlamaAttention, LlamaMLP, normed

__all__ = ["EagleModule"]


class _Layer(nn.Module):
    """A Llama decoder layer; the first has no norm in front of its attention."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, number)
        if number:
            self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        inner = normed(self.input_layernorm, x) if self.self_attn.number else x
        x = x + self.self_attn(inner, cos, sin, attend)
        out: Tensor = x + self.mlp(normed(self.post_attention_layernorm, x))
        return out


class EagleModule(nn.Module):
    """``f̂[t+1] = DecoderLayer(FC(concat(embed(x[t+1]), f[t])))`` (arXiv 2401.15077, section 3.2).

    The paper's has one layer. Where there are more, each further one has a norm in front of its
    attention, as in SafeAILab/EAGLE, ``eagle/model/cnets1.py``.

    Args:
        config: a Llama configuration (`transformers.LlamaConfig`), maybe with a `qkv_bias`.
        bias: whether the FC has a bias.
        inputs: how many vectors of size H are joined in front of the FC.
        norms: norm embedding and feature in front of the FC, as HASS's heads may (``add_para_norm``
            of HArmonizedSS/HASS, ``model/cnets.py``).
    """

    def __init__(
        self, config: Any, *, bias: bool = False, inputs: int = 2, norms: bool = False
    ) -> None:
        super().__init__()
        self.norms = norms
        if norms:
            size, eps = config.hidden_size, config.rms_norm_eps
            self.embedding_layernorm = nn.RMSNorm(size, eps=eps)
            self.hidden_states_layernorm = nn.RMSNorm(size, eps=eps)
        self.fc = nn.Linear(inputs * config.hidden_size, config.hidden_size, bias=bias)
        self.layers = nn.ModuleList(
            [_Layer(config, number) for number in range(config.num_hidden_layers)]
        )

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def attention(self) -> LlamaAttention:
        """The first attention block, for its numbers of heads and their size."""
        layer: _Layer = self.layers[0]  # type: ignore[assignment]
        return layer.self_attn

    def forward(self, joined: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Predict the next features.

        Args:
            joined: ``[B, T, inputs * H]``: the embeddings of the tokens one step ahead, then the
                features.
            cos: ``[B, T, head_dim]``, rotary cosines.
            sin: ``[B, T, head_dim]``, rotary sines.
            attend: attention over whatever each entry may see, layer by layer.

        Returns:
            ``[B, T, H]``.
        """
        if self.norms:
            embedded, feature = joined.chunk(2, dim=-1)
            parts = (
                normed(self.embedding_layernorm, embedded),
                normed(self.hidden_states_layernorm, feature),
            )
            joined = torch.cat(parts, dim=-1)
        out: Tensor = self.fc(joined)
        for layer in self.layers:
            out = layer(out, cos, sin, attend)
        return out
