"""Settings of the head `parallel`, whichever kind its files are of; knows no files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from eagle.plugin import StrategyConfig

__all__ = ["ParallelConfig"]


class ParallelConfig(StrategyConfig):
    """Settings of the `parallel` head; those from `layers` on are of one made for training."""

    weights: str = "auto"
    """Checkpoint: a folder, or a Hub id."""

    lm_head: Literal["auto", "exact"] = "auto"
    """How drafts read the LM head: ``auto`` (with eight bits where that pays) or ``exact``."""

    layers: Literal["auto"] | Annotated[tuple[int, ...], Field(min_length=1)] = "auto"
    """Hidden states that it sees, as transformers counts them; ``auto``: spread as in DFlash."""

    depth: Annotated[int, Field(ge=1, le=16)] = 2
    """Decoder layers of its own."""

    block_size: Annotated[int, Field(ge=2, le=64)] = 8
    """The root and the levels below it: trees may be one less deep."""

    causal: bool = True
    """Whether a level sees those above it alone (JetSpec), or all of its block (DFlash)."""

    sample_from_anchor: bool = True
    """Whether the root's own entry predicts the first level, each mask the next one: one entry
    less, and what follows a known token is said by that token's entry. DFlash and JetSpec: false.
    """

    mask_token_id: Annotated[int, Field(ge=0)] | None = None
    """What stands for a token not known yet; by default the target's padding, or end of text."""
