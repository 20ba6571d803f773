"""The reference strategies, registered through the same entry points as anybody's."""

from __future__ import annotations

from eagle.plugin import (
    AcceptanceRule,
    AttentionBackend,
    DraftHead,
    FeatureExtractor,
    Strategy,
    TrainingLoss,
    TreeBuilder,
    hookimpl,
)
from eagle_plugins import acceptance, attention, features, heads, losses, trees

__all__ = [
    "eagle_acceptance_rules",
    "eagle_attention_backends",
    "eagle_draft_heads",
    "eagle_feature_extractors",
    "eagle_training_losses",
    "eagle_tree_builders",
]


@hookimpl
def eagle_feature_extractors() -> list[Strategy[FeatureExtractor]]:
    """Register the reference feature extractors."""
    return features.STRATEGIES


@hookimpl
def eagle_draft_heads() -> list[Strategy[DraftHead]]:
    """Register the reference draft heads."""
    return heads.STRATEGIES


@hookimpl
def eagle_tree_builders() -> list[Strategy[TreeBuilder]]:
    """Register the reference tree builders."""
    return trees.STRATEGIES


@hookimpl
def eagle_attention_backends() -> list[Strategy[AttentionBackend]]:
    """Register the reference attention backends."""
    return attention.STRATEGIES


@hookimpl
def eagle_acceptance_rules() -> list[Strategy[AcceptanceRule]]:
    """Register the reference acceptance rules."""
    return acceptance.STRATEGIES


@hookimpl
def eagle_training_losses() -> list[Strategy[TrainingLoss]]:
    """Register the reference losses of training."""
    return losses.STRATEGIES
