"""OpenAI's penalties and logit bias, as a logits processor; knows texts and scores, no request."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from eagle.cycle import Processor
from eagle.errors import RequestError
from eagle.plugin import SamplingParams

__all__ = ["Penalties", "penalties"]


class Penalties:
    """Takes from scores what tokens of the answer so far cost, and adds what tokens are worth.

    ``score[t] - frequency * count[t] - presence * (count[t] > 0) + bias[t]``, where the count is of
    the answer alone, as OpenAI defines it and vLLM has it; the prompt costs nothing. It never reads
    the device, and treats all nodes of a level in one call.

    Args:
        start: tokens of the prompt.
        params: the request's.
    """

    any_prefix = True
    rows_apart = True

    def __init__(self, start: int, params: SamplingParams) -> None:
        self._start = start
        self._frequency, self._presence = params.frequency_penalty, params.presence_penalty
        self._tokens = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.int64)
        self._bias = torch.tensor([bias for _, bias in params.logit_bias], dtype=torch.float64)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores ``[n, V]`` of what follows n texts ``[n, L]``."""
        answer = ids[:, self._start :]
        if answer.shape[1] and (self._frequency or self._presence):
            ones = torch.ones_like(answer, dtype=scores.dtype)
            counts = torch.zeros_like(scores).scatter_add_(1, answer, ones)
            scores = scores - self._frequency * counts - self._presence * (counts > 0)
        if len(self._tokens):
            tokens = self._tokens.to(scores.device)
            bias = self._bias.to(scores.device, scores.dtype)
            scores = scores.index_add(1, tokens, bias.expand(len(scores), -1))
        return scores


def penalties(params: SamplingParams, prompt: Collection[int], vocab: int) -> tuple[Processor, ...]:
    """Return the processor that a request's parameters ask for, if they ask for one.

    Raises:
        RequestError: a biased token is none of the *vocab* that the target gives scores.
    """
    bad = [token for token, _ in params.logit_bias if token >= vocab]
    if bad:
        raise RequestError(
            f"logit_bias: token id {bad[0]} is none of this target's, which are 0 to {vocab - 1}"
        )
    if not (params.frequency_penalty or params.presence_penalty or params.logit_bias):
        return ()
    return (Penalties(len(prompt), params),)
