"""One training run: its loop, its files, its processes."""

from eagle.train.run.journal import say
from eagle.train.run.run import train

__all__ = [
    "say",
    "train",
]
