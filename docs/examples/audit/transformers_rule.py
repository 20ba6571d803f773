"""The rule of transformers' assisted decoding, as it is installed."""

import torch
from transformers.generation.utils import _speculative_sampling


def transformers_rule(chain):
    """Return what a step of `generate(assistant_model=...)` puts out in a world."""
    tokens = torch.tensor([chain.tokens])
    target, draft = chain.target_probs.log()[None], chain.draft_probs.log()[None]
    kept, _ = _speculative_sampling(tokens, draft, tokens.shape[1], target)
    return kept[0].tolist()
