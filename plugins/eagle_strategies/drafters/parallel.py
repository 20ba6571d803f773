"""The head `parallel`: a block of levels in one pass, of whichever kind its files are."""

from __future__ import annotations

from eagle.plugin import BuildContext
from eagle_strategies.drafters.block_drafter import BlockDrafter
from eagle_strategies.drafters.parallel_settings import ParallelConfig

__all__ = ["parallel_drafter"]


def parallel_drafter(config: ParallelConfig, context: BuildContext) -> BlockDrafter:
    """Return the drafter that goes with the files."""
    return BlockDrafter(config, context)
