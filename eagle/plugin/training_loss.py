"""The loss of training as a strategy: what it is shown and what it returns; trains nothing.

E entries of one level, F feature size, V vocabulary of the target, Vd that of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Prediction", "TrainingLoss"]


@dataclass(frozen=True)
class Prediction:
    """What a head predicts at some entries of one level, and what the target has there.

    Attributes:
        level: which level, from 0: so many of the head's own outputs were fed back.
        fed_back: ``[E, *]``, what the head would be fed next in a feature's place; of a head that
            predicts features, the predicted feature.
        features: ``[E, F]``, the target's.
        draft_logits: float32 ``[E, Vd]``.
        target_logits: float32 ``[E, V]``, without a gradient.
        draft_vocab: int64 ``[Vd]`` or None; the target's ids of what the head drafts from, where
            that is not the whole vocabulary.
    """

    level: int
    fed_back: Tensor
    features: Tensor
    draft_logits: Tensor
    target_logits: Tensor
    draft_vocab: Tensor | None = None


class TrainingLoss(Protocol):
    """What training minimises.

    It is called for one level and one chunk of the entries at a time, and may be compiled: fixed
    shapes, and no value read on the host.
    """

    @property
    def compares_features(self) -> bool:
        """Whether it looks at `Prediction.fed_back` as predicted features, of size F."""
        ...

    def __call__(self, prediction: Prediction) -> Mapping[str, Tensor]:
        """Return what each entry contributes, float32 ``[E]`` each.

        Returns:
            ``loss``, which is minimised; and, for the log, ``feature`` (regression) and ``token``
            (cross entropy, in nats) where it has such terms.
        """
        ...
