"""A loss of training that looks at tokens alone: how likely the head takes the target's choice."""

import torch.nn.functional as F

from eagle.plugin import Strategy, StrategyConfig


class Choice:
    compares_features = False  # so it suits heads that predict no features, too

    def __init__(self, config, context):
        pass

    def __call__(self, prediction):
        wanted = prediction.target_logits
        if prediction.draft_vocab is not None:  # of a head that drafts from some tokens alone
            wanted = wanted.index_select(-1, prediction.draft_vocab)
        token = F.cross_entropy(prediction.draft_logits, wanted.argmax(-1), reduction="none")
        return {"loss": token, "token": token}


CHOICE = Strategy(
    name="choice",
    config=StrategyConfig,
    build=Choice,
    description="cross entropy with the target's most likely token",
)
