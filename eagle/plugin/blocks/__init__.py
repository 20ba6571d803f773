"""Building blocks for authors of plug-ins: what several strategies are made of, tested once.

It knows the contract, `eagle.plugin`, which exports all of this too; it knows no strategy, no
setting, and of models their faces alone.
"""

from eagle.plugin.blocks.assembly import keep_best, tree_of
from eagle.plugin.blocks.causal import CausalDrafter
from eagle.plugin.blocks.drawing import draw_level, likeliest
from eagle.plugin.blocks.following import (
    children_with,
    follow_argmax,
    follow_drawn,
    path_to,
    weights_at,
)
from eagle.plugin.blocks.indices import LevelIndex, TreeIndex
from eagle.plugin.blocks.scalar import Number, ScalarDraws, ScalarNode, scalar_speculative
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import MAX_NODES, Level, Topology

__all__ = [
    "MAX_NODES",
    "CausalDrafter",
    "Level",
    "LevelIndex",
    "Number",
    "ScalarDraws",
    "ScalarNode",
    "StaticTree",
    "Topology",
    "TreeIndex",
    "children_with",
    "draw_level",
    "follow_argmax",
    "follow_drawn",
    "keep_best",
    "likeliest",
    "path_to",
    "scalar_speculative",
    "tree_of",
    "weights_at",
]
