"""The EAGLE draft head as a network: an FC and a decoder layer or more; no cache, no target.

Module names follow the published checkpoints, so that a state dict needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MLP", "Attend", "Attention", "EagleModule", "normed"]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, query [B, heads, T, d], keys [B, kv_heads, T, d], values) -> [B, T, heads, d]``."""


class Attention(nn.Module):
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
        query, keys = _rotate(query, cos, sin), _rotate(keys, cos, sin)
        attended = attend(self.number, query, keys, split(self.v_proj(x)))
        out: Tensor = self.o_proj(attended.flatten(2))
        return out


class MLP(nn.Module):
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


class _Layer(nn.Module):
    """A Llama decoder layer; the first has no norm in front of its attention."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, number)
        if number:
            self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)
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
    def attention(self) -> Attention:
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


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Return what a norm makes of x, in the dtype of the norm's weights."""
    # Of one dtype already, except in training in half precision, where weights are float32.
    out: Tensor = norm(x.to(norm.weight.dtype))
    return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of the Llama family."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]
