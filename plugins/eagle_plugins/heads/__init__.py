"""Draft heads: given features and the shifted tokens, what comes next."""

from __future__ import annotations

from eagle.roles import DraftHead, Strategy
from eagle_plugins.heads.eagle import EagleConfig, EagleHead
from eagle_plugins.heads.none import NoHead, NoHeadConfig

__all__ = ["STRATEGIES", "EagleConfig", "EagleHead", "NoHead", "NoHeadConfig"]

STRATEGIES: list[Strategy[DraftHead]] = [
    Strategy(
        name="eagle",
        config=EagleConfig,
        build=EagleHead,
        description="EAGLE: one decoder layer over features and the shifted tokens.",
    ),
    Strategy(
        name="none",
        config=NoHeadConfig,
        build=NoHead,
        description="No draft head; with the tree 'none', plain decoding.",
    ),
]
