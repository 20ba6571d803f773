"""Measures a head by rank replay on answers that the target gives to some prompts.

Knows prompts, how the target answers them and where the head's ranks come from; what the ranks
mean is `replay`'s business. Prompts are measured on and never trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle.decoding import half_surrogate
from eagle.errors import DataError, reason
from eagle.plugin import OwnVocabulary, TrainableHead, TrainsLevels
from eagle.target import Target, template_tokens
from eagle.train.data import Corpus, visibility
from eagle.train.evaluation.grouping import first_entry, groups, parts, talks_of
from eagle.train.evaluation.replay import Replay
from eagle.train.features import Features
from eagle.train.objective import drafted_states

__all__ = ["Answer", "answer", "file_prompts", "first_end", "heldout_prompts", "replay_answers"]

RANK_CHUNK = 2048  # positions whose logits are in memory at once
_OPENING = 64  # tokens of a plain text that are its prompt


@dataclass(frozen=True)
class Answer:
    """A prompt's tokens and what the target answers at temperature 0, its end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def file_prompts(path: Path, tokenizer: Any, limit: int) -> list[list[int]]:
    """Return the tokens of the first turns of a file of prompts.

    Args:
        path: JSON lines with ``{"turns": [...]}``.
        tokenizer: with a chat template.
        limit: at most so many.

    Raises:
        DataError: the file cannot be read or has another shape.
    """
    try:
        # Not `splitlines`: JSON's strings may hold what that takes for the end of a line.
        rows = enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the prompts {path} cannot be read: {error}") from error
    lines = [(number, line) for number, line in rows if line.strip()]
    turns = [_first_turn(line, f"{path}:{number}") for number, line in lines[:limit]]
    if not turns:
        raise DataError(f"{path} holds no prompt")
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"the prompts {path} need a chat template, which the target does not have")
    try:
        return [
            template_tokens(
                tokenizer, [{"role": "user", "content": turn}], add_generation_prompt=True
            )
            for turn in turns
        ]
    except Exception as error:  # a template is anybody's code
        raise DataError(
            f"the target's chat template does not render a prompt of {path}: {reason(error)}"
        ) from error


def _first_turn(line: str, place: str) -> str:
    try:
        turn = json.loads(line)["turns"][0]
        if not isinstance(turn, str) or half_surrogate(turn) is not None:
            raise ValueError("its first turn is no text")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(f'{place}: should be {{"turns": ["..."]}}: {reason(error)}') from error
    return turn


def heldout_prompts(corpus: Corpus, numbers: Sequence[int], limit: int) -> list[list[int]]:
    """Return the beginnings of held-out texts: up to the first answer, or some of a plain text."""
    prompts: list[list[int]] = []
    for number in numbers:
        tokens, answers = corpus.text(number)
        # Only a plain text starts with what counts as an answer.
        first = int(answers.argmax()) or min(_OPENING, len(tokens) // 2)
        if len(prompts) < limit and answers.any() and first > 0:
            prompts.append(tokens[:first].tolist())
    return prompts


def answer(
    target: Target, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch: int
) -> list[Answer]:
    """Let the target answer prompts greedily.

    Args:
        target: with transformers' own attention in place (`Target.stock`).
        prompts: tokens of each.
        max_new_tokens: longest answer.
        batch: how many are answered at once.
    """
    ends = sorted(target.eos_tokens)
    pad = ends[0] if ends else 0
    answers: dict[int, Answer] = {}
    # By length, so that little of a batch is padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        width = max(len(prompts[i]) for i in part)
        tokens = torch.full((len(part), width), pad)
        mask = torch.zeros_like(tokens)
        for row, i in enumerate(part):
            tokens[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            out = target.model.generate(
                input_ids=tokens.to(target.device),
                attention_mask=mask.to(target.device),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
            )
        for row, i in enumerate(part):
            said = out[row, width:].tolist()
            answers[i] = Answer(tuple(prompts[i]), tuple(said[: first_end(said, ends) + 1]))
    return [answers[i] for i in range(len(prompts))]


def first_end(said: Sequence[int], ends: Collection[int]) -> int:
    """Return the place of the first end token, or the last place of all."""
    return next((n for n, token in enumerate(said) if token in ends), len(said) - 1)


def replay_answers(
    answers: Sequence[Answer],
    features: Features,
    head: TrainableHead,
    levels: int,
    *,
    device: torch.device,
    batch_tokens: int = 8192,
) -> list[Replay]:
    """Return the ranks that a head gives to the tokens of the answers.

    Args:
        answers: what the target said.
        features: the target's features.
        head: the head to measure.
        levels: D.
        device: where target and head are.
        batch_tokens: tokens of one pass at the first level, padding included.
    """
    replays: dict[int, Replay] = {}
    talks = talks_of(answers)
    texts = [answers[talk[-1]] for talk in talks]
    for part in parts(texts, batch_tokens, levels, whole=isinstance(head, TrainsLevels)):
        tokens, positions, visible = _padded([texts[i] for i in part], device)
        with torch.no_grad():
            true, _ = features(tokens, positions, visible)
            for group in groups([talks[i] for i in part], answers):
                rows = [row for row, _ in group]
                said = [answers[i] for _, i in group]
                end = max(len(one.prompt) + len(one.answer) for one in said)
                states = drafted_states(
                    head,
                    tokens.roll(-1, dims=1)[:, :end],
                    tokens[:, :end],
                    true[:, :end],
                    positions[:, :end],
                    visible[..., :end, :end],
                    levels,
                    first_entry(said),
                )
                found = _ranks(states, rows, said, _whole(head, features.vocab))
                for (_, i), ranks in zip(group, found, strict=True):
                    replays[i] = Replay(ranks)
    return [replays[i] for i in range(len(answers))]


def _whole(head: TrainableHead, vocab: int) -> Callable[[Tensor, int], Tensor]:
    """Return a head's logits over the target's vocabulary: -inf for what it never drafts."""
    ids = head.draft_vocab if isinstance(head, OwnVocabulary) else None

    def own(states: Tensor, level: int) -> Tensor:
        if isinstance(head, TrainsLevels):
            return head.level_logits(states, level)
        return head.logits(states)

    if ids is None:
        return own

    def logits(states: Tensor, level: int) -> Tensor:
        drafts = own(states, level)
        wide = drafts.new_full((*drafts.shape[:-1], vocab), -torch.inf)
        return wide.index_copy(-1, ids, drafts)

    return logits


def _padded(part: Sequence[Answer], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, positions and visibility of some texts, padded behind."""
    width = max(len(one.prompt) + len(one.answer) for one in part)
    tokens = torch.zeros(len(part), width, dtype=torch.int64)
    for row, one in enumerate(part):
        text = torch.tensor(one.prompt + one.answer)
        tokens[row, : len(text)] = text
    positions = torch.arange(width).expand(len(part), -1).contiguous()
    # Padding lies behind the text and is seen by nothing before it.
    visible = visibility(torch.zeros_like(tokens))
    return tokens.to(device), positions.to(device), visible.to(device)


def _ranks(
    states: Sequence[Tensor],
    rows: Sequence[int],
    part: Sequence[Answer],
    logits: Callable[[Tensor, int], Tensor],
) -> list[NDArray[np.int64]]:
    """Return int64 ``[D, m]`` for each answer, of a text in a row; see `Replay.ranks`."""
    device = states[0].device
    ranks = [np.zeros((len(states), len(one.answer)), dtype=np.int64) for one in part]
    for level, state in enumerate(states):
        # Further roots have no true token so far down.
        roots = [max(0, len(one.answer) - 1 - level) for one in part]
        if not any(roots):
            break
        missing = states[0].shape[1] - state.shape[1]
        # The root at answer token i is drafted from the entry one before it in the text.
        entries = [
            torch.arange(count) + (row * state.shape[1] + len(one.prompt) + level - 1 - missing)
            for row, one, count in zip(rows, part, roots, strict=True)
        ]
        true = [
            torch.tensor(one.answer[level + 1 : level + 1 + count], dtype=torch.int64)
            for one, count in zip(part, roots, strict=True)
        ]
        chosen = state.flatten(0, 1)[torch.cat(entries).to(device)]
        wanted = torch.cat(true).to(device)[:, None]
        found = []
        for start in range(0, len(wanted), RANK_CHUNK):
            chunk = slice(start, start + RANK_CHUNK)
            scores = logits(chosen[None, chunk], level)[0].float()
            true_score = scores.gather(-1, wanted[chunk])
            ranks_of = (scores > true_score).sum(-1)
            # What cannot be drafted has no rank that a tree could have.
            found.append(ranks_of.where(true_score[:, 0] > -torch.inf, scores.shape[-1]))
        # One wait for the device per level and batch, not per answer.
        by_answer = np.split(torch.cat(found).cpu().numpy(), np.cumsum(roots)[:-1])
        for mine, count, values in zip(ranks, roots, by_answer, strict=True):
            mine[level, :count] = values
    return ranks
