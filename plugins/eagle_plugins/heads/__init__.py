"""Draft heads: given features and the shifted tokens, what comes next."""

from __future__ import annotations

from eagle.plugin import (
    DraftHead,
    Strategy,
)
from eagle_plugins.heads.ablation import FeatureHead, TokenHead, UnshiftedHead
from eagle_plugins.heads.auto import AutoConfig, any_head
from eagle_plugins.heads.eagle import EagleConfig, EagleHead
from eagle_plugins.heads.eagle3 import Eagle3Config, Eagle3Head
from eagle_plugins.heads.none import NoHead, NoHeadConfig

__all__ = [
    "STRATEGIES",
    "AutoConfig",
    "Eagle3Config",
    "Eagle3Head",
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
        name="auto",
        config=AutoConfig,
        build=any_head,
        description="`eagle` or `eagle3`, whichever the files are of.",
    ),
    Strategy(
        name="eagle",
        config=EagleConfig,
        build=EagleHead,
        description="EAGLE: one decoder layer over features and the shifted tokens.",
    ),
    Strategy(
        name="eagle3",
        config=Eagle3Config,
        build=Eagle3Head,
        description="EAGLE-3 and 3.1: one layer over several of the target's, its own LM head.",
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
