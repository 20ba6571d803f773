"""Trees that follow what is likely, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import Strategy, TreeBuilder
from eagle_strategies.trees.best_first import BEST_FIRST
from eagle_strategies.trees.offered import OFFERED

__all__ = ["STRATEGIES"]

STRATEGIES: list[Strategy[TreeBuilder]] = [BEST_FIRST, OFFERED]
