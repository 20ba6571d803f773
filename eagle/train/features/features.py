"""Features of the frozen target over whole rows; knows no head and no loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eagle.plugin import FeatureExtractor
from eagle.target import Target, device_of

__all__ = ["Features"]


class Features:
    """Computes features on the fly, in one pass without a cache.

    Args:
        target: the target; its attention must be transformers' own (`Target.stock`).
        extractor: how hidden states are joined.
        compiled: compile the target's pass. Its shapes must then stay the same.

    Attributes:
        vocab: V of the target.
    """

    def __init__(
        self, target: Target, extractor: FeatureExtractor, *, compiled: bool = False
    ) -> None:
        self._extractor = extractor
        self.vocab = target.info.vocab_size
        self._entrance = device_of(target.model.get_input_embeddings())
        self._body: Any = target.model.get_decoder()
        if compiled:
            self._body = torch.compile(self._body, dynamic=False)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``[B, T, F]`` and the LM head's input ``[B, T, H]``.

        Args:
            tokens: int64 ``[B, T]``.
            positions: int64 ``[B, T]``.
            visible: bool ``[B, 1, T, T]``; no row may be all False.
        """
        layers = self._extractor.layers
        # A target that is spread over devices is entered on one, and left on another.
        out = self._body(
            input_ids=tokens.to(self._entrance),
            position_ids=positions.to(self._entrance),
            # Of rank 4, so that the model makes no mask of its own.
            attention_mask=visible.to(self._entrance),
            use_cache=False,
            output_hidden_states=bool(layers),
        )
        last: Tensor = out.last_hidden_state.to(tokens.device)
        hidden = [out.hidden_states[i].to(tokens.device) for i in layers]
        return self._extractor.extract(last, hidden), last
