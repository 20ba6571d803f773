"""The fan of `five_roles.tree`, as wide as pays on the machine that it runs on."""

from eagle.plugin import Fit, Option, Strategy, StrategyConfig
from five_roles.tree import Fan, FanConfig


class FittedFan(Fan):
    def __init__(self, config, context):
        super().__init__(FanConfig(), context)  # four wide, until more is known
        self._context = context

    def fit(self, budget):
        right, costs = budget.rates.levels[0], budget.costs
        most = min(len(right), costs.verify.largest - 1)
        options = [
            Option(
                nodes=1 + width,
                depth=1,
                tokens=1 + sum(right[:width]),
                milliseconds=costs.cycle(1 + width, extended=[]),
                settings={"width": width},
            )
            for width in range(1, most + 1)
        ]
        return Fit.best(options, lambda best: Fan(FanConfig(**best.settings), self._context))


FITTED_FAN = Strategy(
    name="fitted-fan",
    config=StrategyConfig,
    build=FittedFan,
    description="the likeliest next tokens, as many as pay on this machine",
)
