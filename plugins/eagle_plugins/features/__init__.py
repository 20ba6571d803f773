"""Feature extractors: which hidden states the draft head sees."""

from __future__ import annotations

from eagle.plugin import FeatureExtractor, Strategy
from eagle_plugins.features.last_hidden import LastHidden, LastHiddenConfig

__all__ = ["STRATEGIES", "LastHidden", "LastHiddenConfig"]

STRATEGIES: list[Strategy[FeatureExtractor]] = [
    Strategy(
        name="last-hidden",
        config=LastHiddenConfig,
        build=LastHidden,
        description="The LM head's input, EAGLE's second-to-top-layer feature.",
    ),
]
