"""A feature extractor that joins hidden states of several layers, as EAGLE-3 does."""

import torch
from pydantic import Field

from eagle.plugin import SpecError, Strategy, StrategyConfig


class JoinedConfig(StrategyConfig):
    layers: tuple[int, ...] = Field(default=(1,), description="hidden states beside the last")


class Joined:
    capturable = True

    def __init__(self, config, context):
        self.layers = config.layers
        if context.target and not all(0 <= n <= context.target.layers for n in self.layers):
            raise SpecError(f"features.layers: the target has layers 0 to {context.target.layers}")

    def feature_size(self, target):
        return target.hidden_size * (1 + len(self.layers))

    def extract(self, last, hidden_states):
        return torch.cat((last, *hidden_states), dim=-1)


JOINED = Strategy(
    name="joined",
    config=JoinedConfig,
    build=Joined,
    description="the last hidden state, joined with those of chosen layers",
)
