"""Losses of training: what a draft head is taught by."""

from __future__ import annotations

from eagle.plugin import Strategy, TrainingLoss
from eagle_plugins.losses.eagle import EagleLoss, EagleLossConfig
from eagle_plugins.losses.eagle3 import Eagle3Loss, Eagle3LossConfig

__all__ = ["STRATEGIES", "Eagle3Loss", "Eagle3LossConfig", "EagleLoss", "EagleLossConfig"]

STRATEGIES: list[Strategy[TrainingLoss]] = [
    Strategy(
        name="eagle",
        config=EagleLossConfig,
        build=EagleLoss,
        description="regression of features and cross entropy of tokens (EAGLE); top-k of HASS",
    ),
    Strategy(
        name="eagle3",
        config=Eagle3LossConfig,
        build=Eagle3Loss,
        description="cross entropy of tokens alone, over the draft vocabulary (EAGLE-3)",
    ),
]
