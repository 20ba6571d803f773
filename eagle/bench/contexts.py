"""Sampled tokens, counted by the text that they follow, beside what the target gives them there.

Knows answers and the target's own passes; it does not know how the answers were decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eagle.bench.passes import cached_passes
from eagle.bench.significance import Draws
from eagle.target import Target

__all__ = ["draws_of"]

_CELLS = 16  # likeliest tokens of a context that are told apart when tokens are counted


def draws_of(
    target: Target,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    answers: Sequence[Sequence[int]],
    temperature: float,
    rows: int,
    progress: Callable[[int], None],
) -> Draws:
    """Count the answers' tokens by the text before them, beside the target's probabilities.

    Args:
        target: whose passes give the probabilities.
        prompts: ids.
        owners: for each answer, which prompt it belongs to.
        answers: ids, at least one each. One that ended early is counted as far as it goes: each
            of its tokens was drawn given the text before it, and nothing was behind the last.
        temperature: at which they were sampled.
        rows: answers in one pass.
        progress: called with the number of answers that were read.
    """
    contexts: dict[tuple[int, ...], int] = {}
    listed: list[list[int]] = []  # of each context the tokens that have a cell of their own
    counts: list[list[int]] = []
    probs: list[Tensor] = []
    others: list[Tensor] = []
    for start in range(0, len(answers), rows):
        some, texts = owners[start : start + rows], answers[start : start + rows]
        asked = sorted(set(some))
        few, of = [prompts[index] for index in asked], [asked.index(index) for index in some]
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
        # Whole answers in one pass, and one token at a time, as plain sampling reads them.
        ((_, whole),) = cached_passes(target, few, of, ids, ids.shape[1])
        for place, logits in cached_passes(target, few, of, ids, 1):
            own = (whole[:, place].double() / temperature).softmax(1)
            best = own.topk(min(_CELLS, own.shape[1])).indices
            other = (logits[:, 0].double() / temperature).softmax(1)
            for row, (prompt, text) in enumerate(zip(some, texts, strict=True)):
                if place >= len(text):
                    continue
                number = contexts.setdefault((prompt, *text[:place]), len(contexts))
                if number == len(counts):
                    listed.append(best[row].tolist())
                    counts.append([0] * (best.shape[1] + 1))
                    probs.append(_cells(own[row], best[row]))
                    others.append(_cells(other[row], best[row]))
                cells = listed[number]
                token = text[place]
                counts[number][cells.index(token) if token in cells else len(cells)] += 1
        progress(len(some))
    return Draws(
        torch.tensor(counts, device=target.device), torch.stack(probs), torch.stack(others)
    )


def _cells(probs: Tensor, tokens: Tensor) -> Tensor:
    """Return the probabilities of some tokens, and of all others together."""
    own = probs[tokens]
    return torch.cat((own, (1 - own.sum()).clamp(min=0)[None]))
