"""Drafters other than EAGLE, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import DraftHead, Strategy
from eagle_strategies.drafters.medusa import MedusaConfig, MedusaHead

__all__ = ["STRATEGIES", "MedusaConfig", "MedusaHead"]

STRATEGIES: list[Strategy[DraftHead]] = [
    Strategy(
        name="medusa",
        config=MedusaConfig,
        build=MedusaHead,
        description="Medusa: a head for each level on the last hidden state, all in one pass.",
    ),
]
