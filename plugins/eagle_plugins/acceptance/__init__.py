"""The reference acceptance rules; knows their names and declarations."""

from __future__ import annotations

from eagle.plugin import AcceptanceRule, BuildContext, Strategy, StrategyConfig
from eagle_plugins.acceptance.speculative import SpeculativeRule
from eagle_plugins.acceptance.typical import TypicalConfig, TypicalRule

__all__ = ["STRATEGIES"]


def _speculative(config: StrategyConfig, context: BuildContext) -> SpeculativeRule:
    return SpeculativeRule()


def _typical(config: TypicalConfig, context: BuildContext) -> TypicalRule:
    return TypicalRule(config)


STRATEGIES: list[Strategy[AcceptanceRule]] = [
    Strategy(
        name="speculative",
        config=StrategyConfig,
        build=_speculative,
        description="rejection sampling over siblings; keeps the target's distribution",
    ),
    Strategy(
        name="typical",
        config=TypicalConfig,
        build=_typical,
        description="keeps every candidate the target finds typical; changes the distribution",
    ),
]
