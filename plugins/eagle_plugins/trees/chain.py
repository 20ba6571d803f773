"""Chains: one candidate per level, the shape on which n-alpha is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eagle.plugin import (
    MAX_NODES,
    BuildContext,
    StaticTree,
    Strategy,
    StrategyConfig,
    Topology,
    TreeBuilder,
)
from eagle_plugins.trees.static import SamplingLaw, build_checked

__all__ = ["CHAIN", "ChainConfig"]


class ChainConfig(StrategyConfig):
    """Settings of `chain`."""

    depth: Annotated[int, Field(ge=1, lt=MAX_NODES, strict=True, description="drafted tokens")] = 4
    sampling: SamplingLaw = "without-replacement"


def _build(config: ChainConfig, context: BuildContext) -> StaticTree:
    return build_checked(Topology.from_branching([1] * config.depth), config.sampling, context)


CHAIN: Strategy[TreeBuilder] = Strategy(
    name="chain",
    config=ChainConfig,
    build=_build,
    description="one candidate per level",
)
