"""Drafters other than EAGLE, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import DraftHead, Strategy
from eagle_strategies.drafters.cascade import CASCADE
from eagle_strategies.drafters.draft_model import DRAFT_MODEL
from eagle_strategies.drafters.prompt_lookup import PROMPT_LOOKUP
from eagle_strategies.drafters.suffix import SUFFIX

__all__ = ["STRATEGIES"]

STRATEGIES: list[Strategy[DraftHead]] = [PROMPT_LOOKUP, SUFFIX, DRAFT_MODEL, CASCADE]
