"""EAGLE-3's loss: tokens alone; knows predictions and what the target has, no text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from eagle.plugin import BuildContext, Prediction, StrategyConfig

__all__ = ["Eagle3Loss", "Eagle3LossConfig"]


class Eagle3LossConfig(StrategyConfig):
    """The loss `eagle3` has no settings."""


class Eagle3Loss:
    """Cross entropy between target and draft over the draft vocabulary (arXiv 2503.01840).

    As the authors' code and SpecForge have it: the target's distribution is restricted to the draft
    vocabulary and normalised again, and entries whose likeliest token is not in it count as zero.
    There no draft can be right at temperature 0, and what is left of the distribution is a rest
    that says little of the text; elsewhere the draft is held to what it can say. So the mean over
    entries, and with it the size of a step, shrinks by the share that the vocabulary leaves out.
    """

    compares_features = False

    def __init__(self, config: Eagle3LossConfig, context: BuildContext) -> None:
        pass

    def __call__(self, prediction: Prediction) -> Mapping[str, Tensor]:
        """See `eagle.plugin.TrainingLoss`."""
        wanted, vocab = prediction.target_logits, prediction.draft_vocab
        inside = wanted if vocab is None else wanted.index_select(-1, vocab)
        logs = prediction.draft_logits.log_softmax(-1)
        token = -(inside.softmax(-1) * logs).sum(-1)
        if vocab is not None:
            token = token * (inside.amax(-1) >= wanted.amax(-1))
        return {"loss": token, "token": token}
