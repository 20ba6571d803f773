"""Losses of training: what a draft head is taught by."""

from __future__ import annotations

from eagle.plugin import Strategy, TrainingLoss
from eagle_plugins.losses.eagle import EagleLoss, EagleLossConfig

__all__ = ["STRATEGIES", "EagleLoss", "EagleLossConfig"]

STRATEGIES: list[Strategy[TrainingLoss]] = [
    Strategy(
        name="eagle",
        config=EagleLossConfig,
        build=EagleLoss,
        description="regression of features and cross entropy of tokens (EAGLE); top-k of HASS",
    ),
]
