"""EAGLE's loss, and the addition of HASS; knows predictions and what the target has, no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from eagle.plugin import BuildContext, Prediction, StrategyConfig

__all__ = ["EagleLoss", "EagleLossConfig"]

Weight = Annotated[float, Field(ge=0, le=1e38)]  # what float32 holds


class EagleLossConfig(StrategyConfig):
    """``feature * SmoothL1(f̂, f) + token * CE(softmax(LMhead f), softmax(LMhead f̂))``.

    Attributes:
        feature: weight of the regression loss (arXiv 2401.15077, section 3.2: 1).
        token: weight of the classification loss (the same: 0.1).
        top_k: K of HASS's distillation loss (arXiv 2408.15766, section 3.1), the cross entropy
            over the target's K most likely tokens alone, or null. HASS: 10.
        top_k_weight: its weight. HASS: 1.
    """

    feature: Weight = 1.0
    token: Weight = 0.1
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_k_weight: Weight = 1.0

    @model_validator(mode="after")
    def _something_is_learned(self) -> EagleLossConfig:
        if self.feature == self.token == 0:
            raise ValueError("feature and token should not both be 0")
        return self


class EagleLoss:
    """Equation and weights: arXiv 2401.15077, section 3.2.

    SmoothL1 is the mean over a feature's elements. Of a head with a vocabulary of its own, the
    target's distribution is that over these tokens alone.
    """

    def __init__(self, config: EagleLossConfig, context: BuildContext) -> None:
        self._config = config

    @property
    def compares_features(self) -> bool:
        """Whether the regression has a weight."""
        return self._config.feature > 0

    def __call__(self, prediction: Prediction) -> Mapping[str, Tensor]:
        """See `eagle.plugin.TrainingLoss`."""
        config, wanted = self._config, prediction.target_logits
        if prediction.draft_vocab is not None:
            wanted = wanted.index_select(-1, prediction.draft_vocab)
        probs = wanted.softmax(-1)
        logs = prediction.draft_logits.log_softmax(-1)
        token = -(probs * logs).sum(-1)
        terms = {"loss": config.token * token, "token": token}
        if config.feature:
            predicted, true = prediction.fed_back.float(), prediction.features.float()
            terms["feature"] = F.smooth_l1_loss(predicted, true, reduction="none").mean(-1)
            terms["loss"] = config.feature * terms["feature"] + terms["loss"]
        if config.top_k:
            best = probs.topk(config.top_k)
            top = -(best.values * logs.gather(-1, best.indices)).sum(-1)
            terms["loss"] = terms["loss"] + config.top_k_weight * top
        return terms
