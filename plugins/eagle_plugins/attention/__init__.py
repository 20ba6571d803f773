"""Attention backends: how a token tree is attended over the cache."""

from __future__ import annotations

from eagle.roles import AttentionBackend, Strategy
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig

__all__ = ["STRATEGIES", "Sdpa", "SdpaConfig"]

STRATEGIES: list[Strategy[AttentionBackend]] = [
    Strategy(
        name="sdpa",
        config=SdpaConfig,
        build=Sdpa,
        description="PyTorch's scaled_dot_product_attention with a dense mask; any device.",
    ),
]
