"""The learning rate over a run; knows progress, not steps or seconds."""

from __future__ import annotations

import math

from eagle.train.spec import OptimizerSpec

__all__ = ["learning_rate"]


def learning_rate(spec: OptimizerSpec, progress: float) -> float:
    """Return the learning rate at a share of the run, 0 to 1: warm-up, then decay.

    >>> spec = OptimizerSpec(lr=1.0, warmup=0.1, schedule="linear", final=0.0)
    >>> [round(learning_rate(spec, x), 2) for x in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < spec.warmup:
        return spec.lr * progress / spec.warmup
    left = 1 - (progress - spec.warmup) / (1 - spec.warmup)
    shape = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return spec.lr * (spec.final + (1 - spec.final) * shape[spec.schedule])
