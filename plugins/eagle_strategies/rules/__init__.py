"""Acceptance rules beside recursive rejection, each in a module of its own."""

from __future__ import annotations

from eagle.plugin import AcceptanceRule, Strategy
from eagle_strategies.rules.block import BLOCK
from eagle_strategies.rules.transport import TRANSPORT
from eagle_strategies.rules.traversal import TRAVERSAL

__all__ = ["STRATEGIES"]

STRATEGIES: list[Strategy[AcceptanceRule]] = [BLOCK, TRAVERSAL, TRANSPORT]
