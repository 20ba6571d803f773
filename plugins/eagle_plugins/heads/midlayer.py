"""The EAGLE-3 draft head as a network: FC, one layer over two inputs, norm and mostly an LM head.

Module names follow the authors' checkpoints (SafeAILab/EAGLE, ``eagle/model/cnets.py``), so that a
state dict needs no conversion. No cache, no target.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eagle.plugin import Attend, FCNorms, JoinsFeatures, LlamaAttention, PairLayer

__all__ = ["Eagle3Module"]


class Eagle3Module(JoinsFeatures):
    """``midlayer``: a Llama layer whose attention sees embedding and hidden state side by side.

    Args:
        config: a Llama configuration (`transformers.LlamaConfig`); H is its hidden size.
        target_size: Ht, the hidden size of the target.
        joined: how many of the target's hidden states the FC joins.
        draft_vocab: Vd; None for a head that reads the target's LM head and has none of its own.
        norms: in front of the FC.
        norm_before_residual: whether the residual is the normed hidden state, not the hidden state.
    """

    def __init__(
        self,
        config: Any,
        *,
        target_size: int,
        joined: int,
        draft_vocab: int | None,
        norms: FCNorms = "none",
        norm_before_residual: bool = False,
    ) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        super().__init__(joined, target_size, size, norms, eps)
        self.midlayer = PairLayer(config, norm_before_residual)
        self.norm = nn.RMSNorm(size, eps=eps)
        self.lm_head = None if draft_vocab is None else nn.Linear(size, draft_vocab, bias=False)

    @property
    def depth(self) -> int:
        """One layer."""
        return 1

    @property
    def attention(self) -> LlamaAttention:
        """Its attention block, for its numbers of heads and their size."""
        return self.midlayer.self_attn

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
