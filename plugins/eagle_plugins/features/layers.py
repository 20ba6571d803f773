"""Hidden states of several layers, side by side: the features of EAGLE-3 (arXiv 2503.01840)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eagle.plugin import BuildContext, SpecError, StrategyConfig, TargetInfo

__all__ = ["Layers", "LayersConfig"]


class LayersConfig(StrategyConfig):
    """Settings of `layers`."""

    layers: Annotated[
        tuple[int, ...] | None,
        Field(
            min_length=1,
            description="indices of transformers' hidden_states (i is the input of decoder layer "
            "i); by default those that the head names",
        ),
    ] = None


class Layers:
    """Passes on the hidden states of some layers, joined in their order: F = H times as many.

    What becomes of them, a projection say, is the head's business.
    """

    capturable = True

    def __init__(self, config: LayersConfig, context: BuildContext) -> None:
        self._given = config.layers
        self.layers: tuple[int, ...] = config.layers or ()
        if context.target is not None:
            self._check(context.target)

    def following(self, layers: tuple[int, ...]) -> Layers:
        """Return the extractor of a head's layers, unless the spec gives some."""
        if self._given is not None:
            return self
        return Layers(LayersConfig(layers=layers), BuildContext())

    def feature_size(self, target: TargetInfo) -> int:
        """Return H times the number of layers.

        Raises:
            SpecError: neither the spec nor the head names layers, or the target has no such one.
        """
        if not self.layers:
            raise SpecError(
                "features.layers: the head names no layers, so give some here, or use "
                "`features: last-hidden`"
            )
        self._check(target)
        return len(self.layers) * target.hidden_size

    def _check(self, target: TargetInfo) -> None:
        if odd := [layer for layer in self.layers if not 0 <= layer <= target.layers]:
            raise SpecError(
                f"features.layers: the target {target.name!r} has no hidden state {odd[0]}; it has "
                f"0 to {target.layers}"
            )

    def extract(self, last: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
        """Return the hidden states side by side, ``[B, N, F]``."""
        return torch.cat(tuple(hidden_states), dim=-1)
