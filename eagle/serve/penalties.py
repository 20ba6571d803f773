"""OpenAI's changes to logits as logits processors: biases, and penalties for what was said.

They know token ids and scores; they do not know requests.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["LogitBias", "SaidPenalty"]


class LogitBias:
    """Adds to the scores of some tokens, everywhere.

    Args:
        bias: what is added, by token id below the vocabulary's size.
    """

    any_prefix = True  # nothing is kept of the texts

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._tokens, self._bias = torch.tensor(list(bias)), torch.tensor(list(bias.values()))

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` with the biases added."""
        tokens, bias = self._tokens.to(scores.device), self._bias.to(scores)
        return scores.index_add(1, tokens, bias[None])


class SaidPenalty:
    """Takes from the scores of tokens that the answer has already, as OpenAI defines it.

    ``score - frequency * (times said) - presence * (said at all)``; the prompt does not count.

    Args:
        prompt: tokens of the prompt.
        frequency: for each time.
        presence: once.
    """

    any_prefix = True  # nothing is kept of the texts

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        self._prompt, self._frequency, self._presence = prompt, frequency, presence

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` of what follows ``ids`` ``[1, L]``."""
        said = ids[0, self._prompt :]
        times = torch.bincount(said, minlength=scores.shape[1]).to(scores)
        return scores - self._frequency * times - self._presence * (times > 0)
