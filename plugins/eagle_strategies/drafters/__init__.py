"""Drafters other than EAGLE, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import DraftHead, Strategy
from eagle_strategies.drafters.block_drafter import BlockDrafter
from eagle_strategies.drafters.cascade import CASCADE
from eagle_strategies.drafters.draft_model import DRAFT_MODEL
from eagle_strategies.drafters.medusa import MedusaConfig, MedusaHead
from eagle_strategies.drafters.parallel import parallel_drafter
from eagle_strategies.drafters.parallel_settings import ParallelConfig
from eagle_strategies.drafters.prompt_lookup import PROMPT_LOOKUP
from eagle_strategies.drafters.recycling import RECYCLING
from eagle_strategies.drafters.suffix import SUFFIX

__all__ = ["STRATEGIES", "BlockDrafter", "MedusaConfig", "MedusaHead", "ParallelConfig"]

STRATEGIES: list[Strategy[DraftHead]] = [
    PROMPT_LOOKUP,
    SUFFIX,
    RECYCLING,
    DRAFT_MODEL,
    CASCADE,
    Strategy(
        name="medusa",
        config=MedusaConfig,
        build=MedusaHead,
        description="Medusa: a head for each level on the last hidden state, all in one pass.",
    ),
    Strategy(
        name="parallel",
        config=ParallelConfig,
        build=parallel_drafter,
        description="DFlash and JetSpec: layers over a block of levels, all in one pass.",
    ),
]
