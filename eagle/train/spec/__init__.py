"""What a training spec may say; trains nothing."""

from eagle.train.spec.config import (
    DEEPEST,
    DataSpec,
    EvaluationSpec,
    LossSpec,
    NoiseSpec,
    OptimizerSpec,
    SourceSpec,
    TrainSpec,
)
from eagle.train.spec.recipe import load_train_spec, shipped_train_specs

__all__ = [
    "DEEPEST",
    "DataSpec",
    "EvaluationSpec",
    "LossSpec",
    "NoiseSpec",
    "OptimizerSpec",
    "SourceSpec",
    "TrainSpec",
    "load_train_spec",
    "shipped_train_specs",
]
