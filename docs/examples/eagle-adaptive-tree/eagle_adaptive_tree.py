"""A tree builder that spends a fixed number of nodes on the text the draft head believes in.

Where the head is sure, the tree grows deep and narrow; where it is not, shallow and wide. The
shape follows the head's own probabilities of whole paths, as in EAGLE-2 (arXiv 2406.16858).
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from eagle.plugin import (
    BuildContext,
    Drafter,
    Draws,
    IncompatibleError,
    Law,
    Strategy,
    StrategyConfig,
    TokenTree,
    TreeBuilder,
    TreeShape,
    hookimpl,
    keep_best,
)


class AdaptiveConfig(StrategyConfig):
    """Settings: levels, candidates expanded on each (with as many children), nodes kept."""

    depth: int = Field(default=5, ge=1, le=16)
    width: int = Field(default=4, ge=1, le=32)
    nodes: int = Field(default=24, ge=1)

    @model_validator(mode="after")
    def _enough_candidates(self) -> AdaptiveConfig:
        if self.nodes > (most := self.width + (self.depth - 1) * self.width**2):
            raise ValueError(f"nodes is {self.nodes}, but depth and width make only {most}")
        return self


class AdaptiveTree:
    """Expands the `width` likeliest paths of each level, keeps the `nodes` likeliest of all."""

    capturable = True  # fixed shapes throughout, and no tensor is looked at from Python
    laws = frozenset({Law.TOP_K})  # siblings are a function of the text: no chance is involved
    uniforms = 0

    def __init__(self, config: AdaptiveConfig, context: BuildContext) -> None:
        if context.target and config.width > context.target.vocab_size:
            raise IncompatibleError(f"tree.width is {config.width}, more than the vocabulary")
        self.config = config
        expansions = (config.depth - 1) * config.width
        self.shape = TreeShape(config.nodes + 1, config.depth, config.width, expansions)

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft level by level, then keep the likeliest candidates."""
        width, slots = self.config.width, drafter.root.shape[0]
        best = drafter.begin().float().log_softmax(-1).topk(width)
        score, token = best.values[:, 0], best.indices[:, 0]
        above = token.new_full((slots, width), -1)  # expansion numbers of the parents
        scores, tokens, parents = [score], [token], [above]  # of all candidates, level by level
        first = 0  # number of the last level's first candidate
        for level in range(self.config.depth - 1):
            beam = score.topk(width).indices
            logits = drafter.expand(token.gather(1, beam), above.gather(1, beam))
            best = logits.float().log_softmax(-1).topk(width)
            parents.append((first + beam).repeat_interleave(width, 1))
            first += score.shape[1]
            score = (score.gather(1, beam)[..., None] + best.values).flatten(1)
            token = best.indices.flatten(1)
            number = torch.arange(level * width, (level + 1) * width, device=token.device)
            above = number.repeat_interleave(width).expand(slots, -1)
            scores.append(score)
            tokens.append(token)
        tokens, scores, parents = (torch.cat(x, 1) for x in (tokens, scores, parents))
        nodes, depth = self.config.nodes, self.config.depth
        return keep_best(drafter.root, tokens, scores, parents, nodes, depth)


@hookimpl
def eagle_tree_builders() -> list[Strategy[TreeBuilder]]:
    """Register the builder."""
    about = "spends its nodes on the paths that the head believes in"
    return [Strategy("adaptive", AdaptiveConfig, AdaptiveTree, about)]
