"""The head `parallel`: a block of levels in one pass, of whichever kind its files are."""

from __future__ import annotations

from eagle.plugin import BuildContext, HeadFiles, find_checkpoint
from eagle_strategies.drafters.block_drafter import BlockDrafter
from eagle_strategies.drafters.block_files import method_of
from eagle_strategies.drafters.parallel_settings import ParallelConfig
from eagle_strategies.drafters.peagle import PEagleDrafter

__all__ = ["parallel_drafter"]


def parallel_drafter(config: ParallelConfig, context: BuildContext) -> BlockDrafter | PEagleDrafter:
    """Return the drafter that goes with the files.

    Without a target, a folder on this machine is looked at, and nothing is asked for; until its
    files are known, a drafter is taken for one of DFlash's kind.

    Raises:
        CheckpointError: there are no such files.
    """
    known = context.target is not None or (context.folder / config.weights).is_dir()
    if known and not context.fresh and config.weights != "auto":
        files = HeadFiles.read(find_checkpoint(config.weights, context.folder))
        if method_of(files) == "peagle":
            return PEagleDrafter(config, context, files)
    return BlockDrafter(config, context)
