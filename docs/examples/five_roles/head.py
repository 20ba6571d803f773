"""A draft head without weights: the next feature is the present one. EAGLE's has to beat it."""

from eagle.plugin import Strategy, StrategyConfig


class Echo:
    capturable = True

    def __init__(self, config, context):
        pass

    def feature_size(self, target):
        return target.hidden_size

    def state_size(self, target):
        return target.hidden_size

    def load(self, target, attention):
        self.target = target  # kept for its frozen LM head; a real head also reads its weights

    def allocate(self, slots, rows):
        pass  # a head with attention allocates an `eagle.plugin.TreeCache` here

    def absorb(self, committed):
        return committed.features  # the states that predict what follows each of the tokens

    def extend(self, drafted):
        return drafted.states

    def logits(self, states):
        return self.target.logits(states)


ECHO = Strategy(
    name="echo",
    config=StrategyConfig,
    build=Echo,
    description="says that the next feature is the present one",
)
