"""A target's LM head: logits of hidden states, and of drafts nearly, by a weight of eight bits.

Knows the product and how families scale it; knows no layer below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eagle.kernels import Int8Linear, int8_linear, left_alone

__all__ = ["LmHead", "width_of"]


class LmHead:
    """What makes logits of the last hidden states.

    Args:
        layer: the model's own, frozen.
        config: the text configuration, which says how its products are scaled.
        dtype: of the model's weights.

    Attributes:
        layer: see there.
        int8: its weight in eight bits, once drafts were to be read by it.
    """

    def __init__(self, layer: Any, config: Any, dtype: torch.dtype) -> None:
        self.layer, self._config, self._dtype = layer, config, dtype
        self.int8: Int8Linear | None = None
        self._int8_of: tuple[int, int] | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Return logits ``[B, N, V]`` of final hidden states ``[B, N, H]``."""
        return self._scaled(self.layer(features))

    def rough(self) -> Callable[[Tensor], Tensor] | None:
        """Return what gives `logits` nearly, by a weight of eight bits, or None where none pays.

        The weight is copied once, and anew where it has been changed since; what was returned
        before keeps the old one.
        """
        if left_alone(self.layer):
            return None
        weight: Tensor = self.layer.weight
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self.int8 is None or self._int8_of != state:
            self.int8, self._int8_of = int8_linear(self.layer), state
        head = self.int8
        if head is None:
            return None

        def logits(features: Tensor) -> Tensor:
            changed = features.dtype != self._dtype or left_alone(self.layer)  # since then
            if changed or not head.serves(features):
                return self.logits(features)
            return self._scaled(head(features))

        return logits

    def _scaled(self, out: Tensor) -> Tensor:
        """Return logits of the LM head's products."""
        if getattr(self._config, "logit_scale", None):  # Cohere
            out = out * self._config.logit_scale
        if getattr(self._config, "logits_scaling", None):  # Granite
            out = out / self._config.logits_scaling
        cap = getattr(self._config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(out / cap) * cap if cap else out


def width_of(head: Any) -> int:
    """Return how many logits an LM head gives, however its weight is kept."""
    found: int = getattr(head, "out_features", None) or head.weight.shape[0]
    return found
