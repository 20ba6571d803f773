"""The field's other strategies, registered through the same entry points as anybody's."""

from __future__ import annotations

from eagle.plugin import AcceptanceRule, DraftHead, Strategy, TreeBuilder, hookimpl
from eagle_strategies import drafters, rules, trees

__all__ = ["eagle_acceptance_rules", "eagle_draft_heads", "eagle_tree_builders"]


@hookimpl
def eagle_draft_heads() -> list[Strategy[DraftHead]]:
    """Register the field's drafters."""
    return drafters.STRATEGIES


@hookimpl
def eagle_tree_builders() -> list[Strategy[TreeBuilder]]:
    """Register the field's tree builders."""
    return trees.STRATEGIES


@hookimpl
def eagle_acceptance_rules() -> list[Strategy[AcceptanceRule]]:
    """Register the field's acceptance rules."""
    return rules.STRATEGIES
