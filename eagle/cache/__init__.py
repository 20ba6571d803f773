"""Keys and values of texts and of trees being verified, and which rows a pass writes and sees;
knows no model.
"""

from eagle.cache.store import Step, TreeCache

__all__ = [
    "Step",
    "TreeCache",
]
