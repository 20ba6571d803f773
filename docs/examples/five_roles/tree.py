"""A tree builder of one level: the likeliest next tokens, side by side."""

import torch
from pydantic import Field

from eagle.plugin import Law, Strategy, StrategyConfig, TokenTree, TreeShape, ancestor_mask


class FanConfig(StrategyConfig):
    width: int = Field(default=4, ge=1)


class Fan:
    capturable = True
    laws = frozenset({Law.TOP_K})  # the siblings are a fixed set: no chance is involved
    uniforms = 0  # so no randomness is read

    def __init__(self, config, context):
        self.width = config.width
        self.shape = TreeShape(nodes=1 + config.width, depth=1, siblings=config.width, expansions=0)

    def build(self, drafter, draws):
        best = drafter.begin()[:, 0].topk(self.width).indices
        zero = torch.zeros_like(drafter.root)[:, None]
        parents = torch.cat((zero - 1, torch.zeros_like(best)), dim=1)
        return TokenTree(
            tokens=torch.cat((drafter.root[:, None], best), dim=1),
            parents=parents,
            depths=torch.cat((zero, torch.ones_like(best)), dim=1),
            ranks=torch.cat(
                (zero, torch.arange(self.width, device=best.device).expand_as(best)), 1
            ),
            ancestors=ancestor_mask(parents, depth=1),
        )


FAN = Strategy(
    name="fan",
    config=FanConfig,
    build=Fan,
    description="the likeliest next tokens, side by side",
)
