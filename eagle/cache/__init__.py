"""Keys and values of texts and of trees being verified, and which rows a pass writes and sees;
knows no model.
"""

from eagle.cache.blocks import Blocks, Held
from eagle.cache.store import BLOCK, Pages, Step, TreeCache, gathered

__all__ = [
    "BLOCK",
    "Blocks",
    "Held",
    "Pages",
    "Step",
    "TreeCache",
    "gathered",
]
