"""The network of a block drafter: queries of a block over keys and values made of target features.

DFlash (arXiv 2602.06036) and JetSpec (arXiv 2606.18394). Module names follow z-lab/dflash
(``dflash/model.py``), so that a state dict needs no conversion. No cache, no target.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eagle.plugin import Attend, LlamaAttention, LlamaMLP, normed, rotated

__all__ = ["BlockNetwork", "NormedAttention", "PlainLayer"]


class NormedAttention(LlamaAttention):
    """Llama's with Qwen3's norms of queries and keys; keys and values of a context apart."""

    def __init__(self, config: Any, number: int, inputs: int = 1) -> None:
        super().__init__(config, number, inputs)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def tp_plan(self, count: int) -> dict[str, str]:
        """See `eagle.plugin.LlamaAttention.tp_plan`: each norm is of one head's numbers."""
        return super().tp_plan(count)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_dim)

    def remembered(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[B, kv_heads, T, head_dim]`` of x, ``[B, T, H]``."""
        keys = normed(self.k_norm, self._split(self.k_proj(x))).transpose(1, 2)
        values = self._split(self.v_proj(x)).transpose(1, 2)
        return rotated(keys, cos, sin).to(values.dtype), values

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Attend from x, ``[B, T, H]``; returns the same shape."""
        query = normed(self.q_norm, self._split(self.q_proj(x))).transpose(1, 2)
        keys, values = self.remembered(x, cos, sin)
        attended = attend(self.number, rotated(query, cos, sin).to(keys.dtype), keys, values)
        out: Tensor = self.o_proj(attended.flatten(2))
        return out


class PlainLayer(nn.Module):
    """A decoder layer with a norm in front of its attention, and one in front of its MLP."""

    def __init__(self, config: Any, number: int, attention: type[LlamaAttention]) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.self_attn = attention(config, number)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Return ``[B, T, H]`` of the same."""
        x = x + self.self_attn(normed(self.input_layernorm, x), cos, sin, attend)
        out: Tensor = x + self.mlp(normed(self.post_attention_layernorm, x))
        return out


class BlockNetwork(nn.Module):
    """A few layers over a block of tokens; what they see of the text are the target's features.

    Args:
        config: a Llama configuration (`transformers.LlamaConfig`), H its hidden size.
        joined: how many of the target's hidden states the FC joins.
        vocab: Vd of an LM head of its own, or None for the target's.
    """

    def __init__(self, config: Any, *, joined: int, vocab: int | None = None) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.joined = joined
        self.fc = nn.Linear(joined * size, size, bias=False)
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.layers = nn.ModuleList(
            [
                PlainLayer(config, number, NormedAttention)
                for number in range(config.num_hidden_layers)
            ]
        )
        self.norm = nn.RMSNorm(size, eps=eps)
        if vocab is not None:
            self.lm_head = nn.Linear(size, vocab, bias=False)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def attention(self) -> LlamaAttention:
        """The first attention block, for its numbers of heads and their size."""
        return self._attentions()[0]

    def _attentions(self) -> list[NormedAttention]:
        return [layer.self_attn for layer in self.layers]  # type: ignore[misc]

    def context(self, features: Tensor) -> Tensor:
        """Return what layers see of features ``[B, T, joined * H]``, ``[B, T, H]``."""
        return normed(self.hidden_norm, self.fc(features))

    def remembered(self, context: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values of `context`, the same input for all of them."""
        return [block.remembered(context, cos, sin) for block in self._attentions()]

    def forward(self, embedded: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Run the layers over blocks.

        Args:
            embedded: ``[B, T, H]``: the root's embedding and those of the mask token.
            cos: ``[B, T, head_dim]``, rotary cosines.
            sin: ``[B, T, head_dim]``, rotary sines.
            attend: attention over the context and whatever each entry may see of its block.

        Returns:
            ``[B, T, H]``, the LM head's input.
        """
        x = embedded
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        return normed(self.norm, x)
