"""The network of a P-EAGLE drafter (arXiv 2602.01469): EAGLE-3's layer, and further ones behind it.

Module names follow vllm-project/speculators (``src/speculators/models/peagle/core.py``,
``models/eagle3``), so that a state dict needs no conversion. No cache, no target.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eagle.plugin import Attend, FCNorms, JoinsFeatures, LlamaAttention, PairLayer, normed
from eagle_strategies.drafters.block_network import NormedAttention, PlainLayer

__all__ = ["PEagleNetwork"]


class PEagleNetwork(JoinsFeatures):
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
        size, eps = config.hidden_size, config.rms_norm_eps
        super().__init__(joined, size, size, norms, eps)
        attention = NormedAttention if head_norms else LlamaAttention
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, joined * size))
        further = (
            PlainLayer(config, number, attention) for number in range(1, config.num_hidden_layers)
        )
        self.layers = nn.ModuleList([PairLayer(config, norm_before_residual, attention), *further])
        self.norm = nn.RMSNorm(size, eps=eps)
        self.lm_head = nn.Linear(size, vocab, bias=False)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def attention(self) -> LlamaAttention:
        """The first attention block, for its numbers of heads and their size."""
        first: PairLayer = self.layers[0]  # type: ignore[assignment]
        return first.self_attn

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
