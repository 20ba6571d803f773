"""Features of the frozen target over whole texts; knows no head and no loss."""

from eagle.train.features.features import Features
from eagle.train.features.layout import Layout

__all__ = [
    "Features",
    "Layout",
]
