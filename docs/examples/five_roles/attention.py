"""Tree attention written out: slow, short, and what a kernel would be compared with."""

from eagle.plugin import Strategy, StrategyConfig


class Naive:
    capturable = True

    def __init__(self, config, context):
        pass

    def unsupported(self, device, dtype, head_dim):
        return None  # a kernel would say, for example, "needs a CUDA device"

    def plan(self, step, query_heads, kv_heads, dtype):
        return ~step.mask()  # once per pass: all layers share it

    def attend(self, query, keys, values, plan, scaling):
        groups = query.shape[1] // keys.shape[1]
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
        scores = (query @ keys.transpose(2, 3) * scaling).float()
        weights = scores.masked_fill(plan, float("-inf")).softmax(-1)
        return (weights.to(values.dtype) @ values).transpose(1, 2)


NAIVE = Strategy(
    name="naive",
    config=StrategyConfig,
    build=Naive,
    description="attention written out as matrix products",
)
