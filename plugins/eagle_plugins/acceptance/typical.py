"""Typical acceptance, a rule that changes the distribution and says so; knows trees, no model."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from eagle.plugin import (
    EVERY_LAW,
    Acceptance,
    Draws,
    StrategyConfig,
    TargetProbs,
    TokenTree,
    TreeShape,
    path_to,
    probabilities,
)

__all__ = ["TypicalConfig", "TypicalRule"]


class TypicalConfig(StrategyConfig):
    """Settings of `typical`; the defaults are those of Medusa's code."""

    epsilon: Annotated[float, Field(gt=0, le=1, description="probability that always suffices")] = (
        0.09
    )
    delta: Annotated[float, Field(gt=0, le=1, description="factor on exp(-entropy)")] = 0.3


class TypicalRule:
    """Keep the longest path of candidates that the target finds typical.

    A candidate is typical when its probability exceeds min(epsilon, delta * exp(-H)), H being the
    entropy of the target's distribution there (Medusa, arXiv 2401.10774, section 2.3.1). The
    bonus token is drawn from the target. At temperature 0 this is greedy decoding; above it,
    likely candidates are kept more often than their probability allows: lossless is False.
    """

    capturable = True
    lossless = False
    laws = EVERY_LAW

    def __init__(self, config: TypicalConfig | None = None) -> None:
        self.config = config or TypicalConfig()

    def uniforms(self, shape: TreeShape) -> int:
        """Return how many uniforms `accept` reads: one, for the bonus token."""
        return 1

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        """Choose the longest typical path (the first of several) and the bonus token."""
        probs = probabilities(target.logits, target.sampling)
        entropy = torch.special.entr(probs).sum(-1)
        enough = (self.config.delta * torch.exp(-entropy)).clamp(max=self.config.epsilon)
        above = tree.parents.clamp(min=0)
        # A node's own probability stands in its parent's distribution.
        likely = probs.flatten(1).gather(1, above * probs.shape[2] + tree.tokens)
        typical = (likely > enough.gather(1, above)) & (tree.parents >= 0)

        reached = torch.zeros_like(typical)
        reached[:, 0] = True
        for _ in range(shape.depth):
            grown = reached.gather(1, above) & typical
            reached = reached | grown
        node = tree.depths.where(reached, -1).argmax(1)
        path, count = path_to(tree, node, shape)
        return Acceptance(path, count, draws.categorical(target.at(node)))
