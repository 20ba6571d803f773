"""The reference tree builders; knows their names and declarations."""

from __future__ import annotations

from eagle.plugin import Strategy, TreeBuilder
from eagle_plugins.trees.chain import CHAIN
from eagle_plugins.trees.dynamic import DYNAMIC
from eagle_plugins.trees.none import NONE
from eagle_plugins.trees.static import STATIC

__all__ = ["STRATEGIES"]

STRATEGIES: list[Strategy[TreeBuilder]] = [CHAIN, DYNAMIC, NONE, STATIC]
