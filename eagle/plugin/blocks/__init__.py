"""Building blocks for authors of plug-ins: what several strategies are made of, tested once.

It knows the contract, `eagle.plugin`, which exports all of this too; it knows no strategy, no
setting, and of models their faces alone.
"""

from eagle.plugin.blocks.assembly import keep_best, tree_of
from eagle.plugin.blocks.causal import CausalDrafter
from eagle.plugin.blocks.drawing import draw_level, likeliest
from eagle.plugin.blocks.indices import LevelIndex, TreeIndex
from eagle.plugin.blocks.integers import INTEGER, pack_integers, unpack_integers
from eagle.plugin.blocks.scalar import ScalarDraws, ScalarNode, scalar_speculative
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import MAX_NODES, Level, Topology

__all__ = [
    "INTEGER",
    "MAX_NODES",
    "CausalDrafter",
    "Level",
    "LevelIndex",
    "ScalarDraws",
    "ScalarNode",
    "StaticTree",
    "Topology",
    "TreeIndex",
    "draw_level",
    "keep_best",
    "likeliest",
    "pack_integers",
    "scalar_speculative",
    "tree_of",
    "unpack_integers",
]
