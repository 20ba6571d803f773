"""A tree builder of one level: the likeliest next tokens, side by side."""

from pydantic import Field

from eagle.plugin import Law, StaticTree, Strategy, StrategyConfig, Topology


class FanConfig(StrategyConfig):
    width: int = Field(default=4, ge=1)


class Fan(StaticTree):
    def __init__(self, config, context):
        # Siblings are a fixed set: no chance is involved, and no randomness is read.
        super().__init__(Topology.from_branching([config.width]), Law.TOP_K)
        self.width = config.width


FAN = Strategy(
    name="fan",
    config=FanConfig,
    build=Fan,
    description="the likeliest next tokens, side by side",
)
