"""Acceptance rules beside recursive rejection, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import AcceptanceRule, Strategy

__all__ = ["STRATEGIES"]

STRATEGIES: list[Strategy[AcceptanceRule]] = []
