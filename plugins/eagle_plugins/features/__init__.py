"""Feature extractors: which hidden states the draft head sees."""

from __future__ import annotations

from eagle.plugin import FeatureExtractor, Strategy
from eagle_plugins.features.last_hidden import LastHidden, LastHiddenConfig
from eagle_plugins.features.layers import Layers, LayersConfig

__all__ = ["STRATEGIES", "LastHidden", "LastHiddenConfig", "Layers", "LayersConfig"]

STRATEGIES: list[Strategy[FeatureExtractor]] = [
    Strategy(
        name="last-hidden",
        config=LastHiddenConfig,
        build=LastHidden,
        description="The LM head's input, EAGLE's second-to-top-layer feature.",
    ),
    Strategy(
        name="layers",
        config=LayersConfig,
        build=Layers,
        description="hidden states of several layers side by side, as EAGLE-3's heads join them",
    ),
]
