"""How often a head's candidates are right, rank by rank: what trees that fit a machine go by.

Knows the ranks that replay finds and whose they are; which tree they make is
`eagle.plugin.budget`'s
business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagle.errors import DataError, PluginError
from eagle.plugin import (
    FeatureExtractor,
    LimitedDepth,
    RankRates,
    TrainableHead,
    TrainsLevels,
    steady,
)
from eagle.spec import TargetSpec
from eagle.target import Target
from eagle.train.data import make_corpus
from eagle.train.evaluation.answers import Answer, answer, heldout_prompts, replay_answers
from eagle.train.evaluation.replay import Replay
from eagle.train.features import Features
from eagle.train.spec import DataSpec, TrainSpec

__all__ = [
    "LEVELS",
    "Ranked",
    "answered",
    "embedded_prompts",
    "measure_rates",
    "rank_rates",
    "ranked",
    "ranked_answers",
    "require_ranks",
]

LEVELS = 8
"""Drafted levels that are looked at where nobody says how many."""

_RANKS = 16
_BATCH = 8192  # tokens of prompts that are answered at once, padding included
_PER_PROMPT = 2  # conversations read for each that is wanted and held out, over their share


@dataclass(frozen=True)
class Ranked:
    """What a target answered to some prompts, and how a head ranked it.

    Attributes:
        source: what text it is, for people.
        answers: of the prompts, in their order.
        replays: of the answers.
    """

    source: str
    answers: tuple[Answer, ...]
    replays: tuple[Replay, ...]


def rank_rates(replays: Sequence[Replay], source: str, ranks: int = _RANKS) -> RankRates:
    """Count the ranks of the true tokens, at every position of some answers.

    At every position and not only where a cycle would begin: those depend on the tree. The tau
    that a tree is expected to have comes out 1 to 5 % too high for it (docs/performance/cpu.md).

    Args:
        replays: of the answers.
        source: what text they are.
        ranks: from which rank on a token counts as not proposed.

    Raises:
        DataError: no answer has two tokens.
    """
    levels = []
    positions = 0
    for level in range(replays[0].ranks.shape[0] if replays else 0):
        # The last tokens of an answer have none so far behind them.
        found = [
            replay.ranks[level, : max(0, replay.ranks.shape[1] - 1 - level)] for replay in replays
        ]
        seen = np.concatenate(found)
        if not seen.size:
            break
        positions = positions or int(seen.size)
        counts = np.bincount(seen[seen < ranks], minlength=ranks)
        # Which of two ranks is likelier is known; where counts say otherwise it is chance.
        falling = steady((counts[::-1] / seen.size).tolist())[::-1]
        levels.append(tuple(round(rate, 5) for rate in falling))
    if not levels:
        raise DataError("there is no answer of two tokens or more to measure the head on")
    return RankRates(levels=tuple(levels), positions=positions, source=source)


def embedded_prompts(target: TargetSpec, limit: int, say: Callable[[str], None]) -> list[list[int]]:
    """Return first turns of ShareGPT conversations that the shipped recipes hold out.

    Args:
        target: whose tokenizer and chat template are used.
        limit: how many, at most.
        say: is told what goes on.

    Raises:
        AssetError: the dataset cannot be fetched.
        DataError: the tokenizer has no chat template to tell answers by.
    """
    share = DataSpec().heldout
    wanted = DataSpec(limit=int(_PER_PROMPT * limit / share))
    spec = TrainSpec(target=target, data=wanted)
    say("tokenising conversations ...")
    corpus = make_corpus(spec, lambda what: None)
    _, heldout = corpus.split(share, wanted.seed)
    return heldout_prompts(corpus, heldout.tolist(), limit)


def measure_rates(
    head: Any,
    target: Target,
    extractor: FeatureExtractor,
    prompts: Sequence[Sequence[int]],
    source: str,
    **options: Any,
) -> RankRates:
    """Let the target answer prompts at temperature 0, and count the ranks of what it says.

    See `ranked_answers`, whose arguments and errors these are, and `rank_rates`.
    """
    found = ranked_answers(head, target, extractor, prompts, source, **options)
    return rank_rates(found.replays, found.source)


def ranked_answers(
    head: Any,
    target: Target,
    extractor: FeatureExtractor,
    prompts: Sequence[Sequence[int]],
    source: str,
    *,
    levels: int = LEVELS,
    say: Callable[[str], None] = lambda what: None,
    **options: Any,
) -> Ranked:
    """Let the target answer prompts at temperature 0, and look up each token's ranks.

    Args and errors are those of `answered` and `ranked`.
    """
    require_ranks(head)
    answers = answered(target, prompts, say=say, **options)
    of = f"{source}: {len(answers)} prompts"
    return ranked(head, target, extractor, answers, of, levels=levels, say=say)


def require_ranks(head: Any) -> None:
    """Check that there is a pass through which ranks are found.

    Raises:
        PluginError: the head has no training pass.
    """
    if not (callable(getattr(head, "train_states", None)) or isinstance(head, TrainsLevels)):
        raise PluginError(
            f"a {type(head).__name__} has no train_states, through which ranks are found "
            "(see eagle.plugin.TrainableHead)"
        )


def answered(
    target: Target,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    max_prompt: int = 1024,
    batch: int = 8,
    say: Callable[[str], None] = lambda what: None,
) -> list[Answer]:
    """Let the target answer prompts at temperature 0.

    Args:
        target: the target.
        prompts: tokens of each.
        max_new_tokens: longest answer.
        max_prompt: longest prompt; longer ones are left out, and counted.
        batch: prompts answered at once; long ones are fewer.
        say: is told what goes on.

    Raises:
        DataError: no prompt is short enough.
    """
    longest = min(max_prompt, target.capacity - max_new_tokens)
    short = [prompt for prompt in prompts if len(prompt) <= longest]
    if len(short) < len(prompts):
        say(f"prompts of over {longest} tokens left out: {len(prompts) - len(short)}")
    if not short:
        raise DataError(f"there is no prompt of at most {longest} tokens to measure the head on")
    answers: list[Answer] = []
    with target.stock():
        while len(answers) < len(short):
            say(f"the target answers {len(short)} prompts ({len(answers)} done) ...")
            part = _together(short[len(answers) :], batch)
            answers += answer(target, part, max_new_tokens, batch)
    return answers


def ranked(
    head: Any,
    target: Target,
    extractor: FeatureExtractor,
    answers: Sequence[Answer],
    source: str,
    *,
    levels: int = LEVELS,
    say: Callable[[str], None] = lambda what: None,
) -> Ranked:
    """Look up the ranks that a head gives to the tokens of answers.

    Args:
        head: loaded, with a training pass (`eagle.plugin.TrainableHead`).
        target: whose answers they are.
        extractor: the feature extractor.
        answers: what it said at temperature 0.
        source: what text they are, for people.
        levels: D, or as many as the head drafts.
        say: is told what goes on.

    Raises:
        PluginError: the head has no training pass.
    """
    require_ranks(head)
    if isinstance(head, LimitedDepth) and (most := head.deepest_level()) is not None:
        levels = min(levels, most)
    replayed: TrainableHead = head
    say(f"looking up the ranks of {sum(len(one.answer) for one in answers):,} tokens ...")
    with target.stock():
        replays = replay_answers(
            answers, Features(target, extractor), replayed, levels,
            device=target.device, batch_tokens=2048,
        )  # fmt: skip
    return Ranked(source, tuple(answers), tuple(replays))


def _together(prompts: Sequence[Sequence[int]], most: int) -> Sequence[Sequence[int]]:
    """Return the first of some prompts, as many as are answered at once."""
    count, width = 0, 0
    for prompt in prompts[:most]:
        width = max(width, len(prompt))
        if count and (count + 1) * width > _BATCH:
            break
        count += 1
    return prompts[:count]
