"""Draft heads: given features and the shifted tokens, what comes next."""

from __future__ import annotations

from eagle.plugin import DraftHead, Strategy
from eagle_plugins.heads.ablation import FeatureHead, TokenHead, UnshiftedHead
from eagle_plugins.heads.eagle import EagleConfig, EagleHead
from eagle_plugins.heads.none import NoHead, NoHeadConfig

__all__ = [
    "STRATEGIES",
    "EagleConfig",
    "EagleHead",
    "FeatureHead",
    "NoHead",
    "NoHeadConfig",
    "TokenHead",
    "UnshiftedHead",
]

STRATEGIES: list[Strategy[DraftHead]] = [
    Strategy(
        name="eagle",
        config=EagleConfig,
        build=EagleHead,
        description="EAGLE: one decoder layer over features and the shifted tokens.",
    ),
    Strategy(
        name="feature",
        config=EagleConfig,
        build=FeatureHead,
        description="Ablation: the layer of `eagle` over features, without any token.",
    ),
    Strategy(
        name="feature-unshifted",
        config=EagleConfig,
        build=UnshiftedHead,
        description="Ablation: the layer of `eagle` over features and the tokens they belong to.",
    ),
    Strategy(
        name="token",
        config=EagleConfig,
        build=TokenHead,
        description="Ablation: the layer of `eagle` over the shifted tokens, without features.",
    ),
    Strategy(
        name="none",
        config=NoHeadConfig,
        build=NoHead,
        description="No draft head; with the tree 'none', plain decoding.",
    ),
]
