"""Attention backends: how a token tree is attended over the cache."""

from __future__ import annotations

from eagle.plugin import AttentionBackend, Strategy
from eagle_plugins.attention.auto import Auto, AutoConfig
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig
from eagle_plugins.attention.triton import Triton, TritonConfig

__all__ = [
    "STRATEGIES",
    "Auto",
    "AutoConfig",
    "Sdpa",
    "SdpaConfig",
    "Triton",
    "TritonConfig",
]

STRATEGIES: list[Strategy[AttentionBackend]] = [
    Strategy(
        name="auto",
        config=AutoConfig,
        build=Auto,
        description="triton for trees on a GPU that it supports, sdpa for everything else.",
    ),
    Strategy(
        name="sdpa",
        config=SdpaConfig,
        build=Sdpa,
        description="PyTorch's scaled_dot_product_attention with a dense mask; any device.",
    ),
    Strategy(
        name="triton",
        config=TritonConfig,
        build=Triton,
        description="A split-KV kernel that reads a slot's cache once, as far as it is filled.",
    ),
]
