"""Is a parallel drafter made for this target? Knows sizes, layers and the mask token, no weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle.plugin import CheckpointError, TargetInfo
from eagle_strategies.drafters.block_files import BlockVariant

__all__ = ["check_sizes", "check_target"]


def check_target(variant: BlockVariant, folder: Path, target: TargetInfo) -> None:
    """Refuse a drafter of another target, by its sizes.

    Raises:
        CheckpointError: naming what differs.
    """
    theirs = variant.target_layers
    if theirs not in (None, target.layers):
        raise CheckpointError(_differs(folder, "num_target_layers", theirs, target, target.layers))
    # Of the last one z-lab takes what transformers shows, behind the norm, and engines what comes
    # before it: of speculators' files none says which is meant.
    last = target.layers - 1 if variant.publisher == "speculators" else target.layers
    check_sizes(variant.config, variant.layers, variant.mask, folder, target, last)


def check_sizes(
    config: Any, layers: Sequence[int], mask: int, folder: Path, target: TargetInfo, last: int
) -> None:
    """Refuse a drafter whose sizes, layers or mask token are not those of a target.

    Args:
        config: of its layers.
        layers: hidden states that it sees.
        mask: its mask token.
        folder: of its files.
        target: the target.
        last: the last hidden state that can be meant.

    Raises:
        CheckpointError: naming what differs.
    """
    for key in ("hidden_size", "vocab_size"):
        theirs, ours = getattr(config, key), getattr(target, key)
        if theirs != ours:
            raise CheckpointError(_differs(folder, key, theirs, target, ours))
    if odd := [layer for layer in layers if not 0 <= layer <= last]:
        raise CheckpointError(
            f"the parallel drafter in {folder} sees hidden state {odd[0]}, and of the target "
            f"{target.name!r} those from 0 to {last} can be meant"
        )
    if mask >= target.vocab_size:
        raise CheckpointError(
            f"the parallel drafter in {folder} has mask_token_id {mask}, which is not among "
            f"the {target.vocab_size} tokens of the target {target.name!r}"
        )


def _differs(folder: Path, key: str, theirs: object, target: TargetInfo, ours: object) -> str:
    return (
        f"the parallel drafter in {folder} has {key} {theirs}, the target {target.name!r} has "
        f"{ours}; a drafter only works with the target it was trained for"
    )
