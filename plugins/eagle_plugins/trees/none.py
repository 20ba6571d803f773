"""No drafting: the root alone, so that plain decoding goes through the same loop."""

from __future__ import annotations

from eagle.plugin import (
    BuildContext,
    Law,
    StaticTree,
    Strategy,
    StrategyConfig,
    Topology,
    TreeBuilder,
)

__all__ = ["NONE"]


def _build(config: StrategyConfig, context: BuildContext) -> StaticTree:
    return StaticTree(Topology(), Law.TOP_K)


NONE: Strategy[TreeBuilder] = Strategy(
    name="none",
    config=StrategyConfig,
    build=_build,
    description="no candidates: plain decoding through the same loop",
)
