"""Feature extractors: which hidden states the draft head sees."""

from __future__ import annotations

from eagle.plugin import FeatureExtractor, Strategy
from eagle_plugins.features.auto import Asked
from eagle_plugins.features.last_hidden import LastHidden, LastHiddenConfig
from eagle_plugins.features.layers import Layers, LayersConfig

__all__ = ["STRATEGIES", "Asked", "LastHidden", "LastHiddenConfig", "Layers", "LayersConfig"]

STRATEGIES: list[Strategy[FeatureExtractor]] = [
    Strategy(
        name="auto",
        config=LastHiddenConfig,
        build=Asked,
        description="What the head asks for: `layers` if it names some, or else `last-hidden`.",
    ),
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
