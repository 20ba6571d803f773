"""An acceptance rule that samples from the target and follows the tree as far as it agrees.

What it puts out is drawn from the target at every step, whoever drafted the tree and however: it
is lossless under every law. It accepts less than `speculative` at temperature above 0.
"""

import torch

from eagle.plugin import EVERY_LAW, Acceptance, Strategy, StrategyConfig


class Match:
    capturable = True
    lossless = True
    laws = EVERY_LAW  # it does not look at how candidates came about

    def __init__(self, config, context):
        pass

    def uniforms(self, shape):
        return shape.depth + 1  # one token drawn at the root and at every level

    def accept(self, tree, target, shape, draws):
        node = torch.zeros_like(tree.tokens[:, 0])
        count, bonus = torch.zeros_like(node), torch.zeros_like(node)
        going = torch.ones_like(node, dtype=torch.bool)
        path = [node]
        for _ in range(shape.depth + 1):
            # A slot that has stopped draws from nothing, so that a proof need not branch on it.
            token = draws.categorical(target.at(node) * going[:, None])
            bonus = torch.where(going, token, bonus)
            found = (tree.parents == node[:, None]) & (tree.tokens == token[:, None])
            going = going & found.any(1)
            node = torch.where(going, found.to(torch.uint8).argmax(1), 0)
            count = count + going
            path.append(node)
        return Acceptance(torch.stack(path[: shape.depth + 1], dim=1), count, bonus)


MATCH = Strategy(
    name="match",
    config=StrategyConfig,
    build=Match,
    description="samples from the target and follows the tree as far as it agrees",
)
