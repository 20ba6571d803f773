"""A smaller causal language model as the drafter; what runs it is `eagle.plugin.CausalDrafter`.

The classical draft model of speculative decoding (arXiv 2211.17192, 2302.01318).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eagle.plugin import BuildContext, CausalDrafter, DraftHead, Strategy, StrategyConfig

__all__ = ["DRAFT_MODEL", "DraftModelConfig"]


class DraftModelConfig(StrategyConfig):
    """Settings of `draft-model`."""

    model: Annotated[
        str, Field(min_length=1, description="its folder; a relative one starts at the spec's")
    ]


def _build(config: DraftModelConfig, context: BuildContext) -> CausalDrafter:
    return CausalDrafter(context.folder / config.model)


DRAFT_MODEL: Strategy[DraftHead] = Strategy(
    name="draft-model",
    config=DraftModelConfig,
    build=_build,
    description="a smaller causal language model with the target's tokens",
)
