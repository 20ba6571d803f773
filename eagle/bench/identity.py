"""Is a greedy answer the target's, token by token, and is a difference a tie or a mistake?

Knows answers and the target's own logits; it does not know how the answers were decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from eagle.bench.passes import cached_passes, full_pass
from eagle.target import Target

__all__ = ["Agreement", "Choice", "Evidence", "agreement", "evidence", "first_difference", "strays"]

_CANDIDATES = 32  # likeliest tokens among which noise is measured: all that could ever win
# A tie may be this many times the noise: three passes do not show the farthest that a fourth may
# go. A wrong mask or position makes differences beyond it within a hundred tokens of bfloat16.
_ALLOWANCE = 2.0


@dataclass(frozen=True)
class Choice:
    """Two tokens at one place of an answer, and the target's own opinion of them.

    Attributes:
        prompt: which prompt.
        position: of the token in the answer, from 0.
        token: the decoder's, or None where its answer had ended.
        other: the one that it is compared with, or None likewise.
        gap: between the target's two best logits, by its own full pass.
        distance: between the logits of the two tokens, by the same pass.
        noise: how far two valid passes of the target move two likely tokens against each other
            there (see `evidence`).
        steps: the distance in rounding steps of the dtype at the best logit's size.
        tie: the distance is at most twice the noise, so that either token is the target's.
    """

    prompt: int
    position: int
    token: int | None
    other: int | None
    gap: float
    distance: float | None
    noise: float
    steps: float | None
    tie: bool


@dataclass(frozen=True)
class Agreement:
    """A decoder's answers against those of one reference.

    Attributes:
        prompts: how many were answered.
        identical: answers with the same tokens throughout.
        divergences: the first difference of each of the others.
    """

    prompts: int
    identical: int
    divergences: tuple[Choice, ...]


@dataclass(frozen=True)
class Evidence:
    """What the target's own passes say about one answer of T tokens; tensors on the CPU.

    Attributes:
        watched: int64 ``[T, W]``, tokens looked at: the likeliest, best first, then the answer's
            and the references'.
        logits: float32 ``[T, W]``, by one full forward over prompt and answer.
        noise: float32 ``[T]``, see `evidence`.
    """

    watched: Tensor
    logits: Tensor
    noise: Tensor

    def choice(
        self, prompt: int, position: int, token: int | None, other: int | None, dtype: torch.dtype
    ) -> Choice:
        """Judge two tokens at one place."""
        logits = self.logits[position]
        best, second = logits[:2].tolist()
        noise = self.noise[position].item()
        distance = steps = None
        if token is not None and other is not None:
            found = [logits[self.watched[position] == one][0].item() for one in (token, other)]
            distance = abs(found[0] - found[1])
            steps = distance / _rounding(best, dtype)
        tie = distance is not None and distance <= _ALLOWANCE * noise
        return Choice(prompt, position, token, other, best - second, distance, noise, steps, tie)


def _rounding(value: float, dtype: torch.dtype) -> float:
    """Return the distance of neighbouring numbers of a dtype around a value."""
    info = torch.finfo(dtype)
    return float(info.eps * 2 ** math.floor(math.log2(max(abs(value), info.tiny))))


def first_difference(answer: Sequence[int], reference: Sequence[int]) -> int | None:
    """Return the first position at which two answers differ, or None.

    >>> first_difference([5, 6, 7], [5, 9, 7]), first_difference([5], [5, 6])
    (1, 1)
    """
    for position, (token, other) in enumerate(zip(answer, reference, strict=False)):
        if token != other:
            return position
    return None if len(answer) == len(reference) else min(len(answer), len(reference))


def evidence(
    target: Target,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    references: Sequence[Sequence[Sequence[int]]],
    *,
    width: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Evidence]:
    """Run the target's own passes over answers, and measure how far they differ from each other.

    Three passes that are all valid read each answer: one full forward over the unpadded text; a
    batch over transformers' cache, one token at a time, as `generate` does; the same in passes
    as wide as a token tree. The noise at a position is the most by which any two of them change
    the difference of two candidates' logits. If a fourth valid pass prefers token a to b, then
    in the full pass a is behind b by no more than these two passes move them against each other.
    So a difference of that size is a tie, and the measured noise needs only a small allowance
    for what three passes do not show. One rounding step of the dtype counts as noise in any case:
    a logit is not known better than that.

    Args:
        target: whose model is run.
        prompts: ids.
        answers: of the decoder that is judged, at least one token each.
        references: other answers to each prompt; where they first differ, their token is watched.
        width: nodes of a token tree.
        batch: answers in one cached pass.
        progress: called with the number of answers that were read by all three.
    """
    found: list[Evidence] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        some, texts = prompts[part], answers[part]
        fulls = [
            _watch(full_pass(target, prompt, text).float(), text, others)
            for prompt, text, others in zip(some, texts, references[part], strict=True)
        ]
        longest = max(len(text) for text in texts)
        padded = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        watched = torch.stack([_extend(tokens, longest) for tokens, _ in fulls])
        others = [
            _gathered(target, some, padded, watched, pass_width)
            for pass_width in sorted({1, max(width, 2)})
        ]
        for row, (tokens, logits) in enumerate(fulls):
            passes = [logits, *(other[row, : len(tokens)] for other in others)]
            found.append(Evidence(tokens.cpu(), logits.cpu(), _noise(passes, target.dtype).cpu()))
        progress(len(some))
    return found


def _noise(passes: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return ``[T]`` of the watched tokens' logits ``[T, W]`` by several passes."""
    moved = torch.stack([one - other for one, other in combinations(passes, 2)])
    largest = (moved.amax(2) - moved.amin(2)).amax(0)
    least = [_rounding(best, dtype) for best in passes[0][:, 0].tolist()]
    return torch.maximum(largest, torch.tensor(least, device=largest.device))


def _watch(
    logits: Tensor, text: Sequence[int], references: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return the tokens to look at ``[T, W]`` and their logits."""
    best = logits.topk(min(_CANDIDATES, logits.shape[1])).indices
    columns = [list(text) for _ in range(1 + len(references))]
    for column, reference in zip(columns[1:], references, strict=True):
        place = first_difference(text, reference)
        if place is not None and place < min(len(text), len(reference)):
            column[place] = reference[place]
    watched = torch.cat((best, torch.tensor(columns, device=best.device).T), 1)
    return watched, logits.gather(1, watched)


def _extend(watched: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(watched, (0, 0, 0, length - watched.shape[0]))


def _gathered(
    target: Target, prompts: Sequence[Sequence[int]], texts: Tensor, watched: Tensor, width: int
) -> Tensor:
    """Return the watched tokens' logits ``[R, T, W]`` by cached passes of a width."""
    pieces = [
        logits.gather(2, watched[:, start : start + logits.shape[1]]).float()
        for start, logits in cached_passes(target, prompts, range(len(prompts)), texts, width)
    ]
    return torch.cat(pieces, 1)


def agreement(
    answers: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    judged: Sequence[Evidence],
    dtype: torch.dtype,
) -> Agreement:
    """Compare answers with a reference's, and judge every first difference."""
    divergences = []
    for index, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        place = first_difference(answer, reference)
        if place is None:
            continue
        token = answer[place] if place < len(answer) else None
        other = reference[place] if place < len(reference) else None
        # Past the end of the answer nothing was measured: what counts is that it is no tie.
        known = min(place, len(answer) - 1)
        choice = judged[index].choice(index, known, token, other, dtype)
        divergences.append(choice)
    return Agreement(len(answers), len(answers) - len(divergences), tuple(divergences))


def strays(
    answers: Sequence[Sequence[int]], judged: Sequence[Evidence], dtype: torch.dtype
) -> tuple[Choice, ...]:
    """Return the tokens that the full pass would not have chosen, given the answer before them.

    They are looked for in whole answers, also behind the first difference from a reference.
    """
    found = []
    for index, (answer, own) in enumerate(zip(answers, judged, strict=True)):
        best = own.watched[:, 0].tolist()
        for position, (token, wanted) in enumerate(zip(answer, best, strict=True)):
            if token != wanted:
                choice = own.choice(index, position, token, wanted, dtype)
                if choice.distance:  # logits may be equal to the last bit
                    found.append(choice)
    return tuple(found)
