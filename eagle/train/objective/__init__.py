"""What a head is trained towards: losses, levels, noise, learning rate; knows tensors, no text."""

from eagle.train.objective.average import Average
from eagle.train.objective.levels import (
    Levels,
    States,
    drafted_states,
    level_states,
    level_weights,
    unrolled_states,
)
from eagle.train.objective.losses import Loss, LossValue
from eagle.train.objective.noise import Noise
from eagle.train.objective.schedule import learning_rate

__all__ = [
    "Average",
    "Levels",
    "Loss",
    "LossValue",
    "Noise",
    "States",
    "drafted_states",
    "learning_rate",
    "level_states",
    "level_weights",
    "unrolled_states",
]
