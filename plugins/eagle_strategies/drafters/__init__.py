"""Drafters other than EAGLE, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import DraftHead, Strategy

__all__ = ["STRATEGIES"]

STRATEGIES: list[Strategy[DraftHead]] = []
