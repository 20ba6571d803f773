"""Evaluates a head while it is trained: prompts gathered once, figures as often as wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.host import write_text
from eagle.plugin import FeatureExtractor, TrainableHead
from eagle.target import Target
from eagle.train.data import Corpus
from eagle.train.evaluation.answers import (
    Answer,
    answer,
    file_prompts,
    heldout_prompts,
    replay_answers,
)
from eagle.train.evaluation.replay import n_alpha, tau
from eagle.train.features import Features
from eagle.train.spec import EvaluationSpec

__all__ = ["Measure", "Measured"]

HELDOUT = "held-out"


@dataclass(frozen=True)
class Measured:
    """The figures of one head.

    Attributes:
        tau: by tree, then by set of prompts.
        n_alpha: by set of prompts, one rate for each level of the chain.
    """

    tau: Mapping[str, Mapping[str, float]]
    n_alpha: Mapping[str, Sequence[float]]

    @property
    def score(self) -> float | None:
        """What the best head is chosen by: the first tree's mean tau, over held-out text if any."""
        if not self.tau:
            return None
        by_set = next(iter(self.tau.values()))
        chosen = [by_set[HELDOUT]] if HELDOUT in by_set else list(by_set.values())
        return sum(chosen) / len(chosen) if chosen else None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for the log."""
        return {"tau": self.tau, "n_alpha": self.n_alpha}

    def lines(self) -> list[str]:
        """Return the figures for people, a line for each tree and one for the chain."""
        lines = [
            f"tau ({tree}): " + ", ".join(f"{name} {value:.2f}" for name, value in by_set.items())
            for tree, by_set in self.tau.items()
        ]
        alphas = [f"{name} {' '.join(f'{a:.2f}' for a in by)}" for name, by in self.n_alpha.items()]
        return [*lines, f"n-alpha: {', '.join(alphas)}"] if alphas else lines


def _kept(path: Path) -> dict[str, Any]:
    """Return the answers of a file, by what they answer; none where it cannot be made out."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _fits(answers: Any, count: int, vocabulary: int) -> bool:
    """Whether something of a file is so many answers of tokens; others are made anew."""
    return (
        isinstance(answers, list)
        and len(answers) == count
        and all(isinstance(said, list) and said for said in answers)
        and all(type(t) is int and 0 <= t < vocabulary for said in answers for t in said)
    )


class Measure:
    """Rank replay over sets of prompts.

    Args:
        spec: which prompts and trees.
        target: the target.
        extractor: the feature extractor.
        trees: rank paths by the trees' titles.
        locate: makes a path of a file's name in the spec.
    """

    def __init__(
        self,
        spec: EvaluationSpec,
        target: Target,
        extractor: FeatureExtractor,
        trees: Mapping[str, frozenset[tuple[int, ...]]],
        locate: Callable[[str], Path],
    ) -> None:
        self._spec, self._target, self._trees, self._locate = spec, target, trees, locate
        # Not compiled: every group of answers has a shape of its own.
        self._features = Features(target, extractor)
        self._sets: dict[str, list[Answer]] = {}

    def gather(
        self,
        corpus: Corpus,
        heldout: Sequence[int],
        kept: Path,
        say: Callable[[str], None],
        *,
        keep: bool = True,
    ) -> None:
        """Let the target answer all prompts.

        Args:
            corpus: the text, for held-out prompts.
            heldout: numbers of the held-out conversations.
            kept: file in which answers are kept for the next time.
            say: is told what is left out.
            keep: write that file; of several processes, one does.

        Raises:
            DataError: a file of prompts cannot be used.
        """
        sets = {HELDOUT: heldout_prompts(corpus, heldout, self._spec.heldout)}
        for name, file in self._spec.prompts.items():
            sets[name] = file_prompts(self._locate(file), self._target.tokenizer, self._spec.limit)
        longest = min(self._spec.max_prompt, self._target.capacity - self._spec.max_new_tokens)
        for name, prompts in sets.items():
            short = [prompt for prompt in prompts if len(prompt) <= longest]
            if len(short) < len(prompts):
                say(
                    f"{name}: {len(prompts) - len(short)} prompts of over {longest} tokens left out"
                )
            if short:
                self._sets[name] = self._answers(short, kept, name, say, keep)

    def _answers(
        self,
        prompts: list[list[int]],
        kept: Path,
        name: str,
        say: Callable[[str], None],
        keep: bool,
    ) -> list[Answer]:
        """Return the target's answers, from the file where they are kept if they are."""
        spec = self._spec
        model = Path(self._target.info.name).name
        identity = [model, str(self._target.dtype), spec.max_new_tokens, prompts]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        known = _kept(kept)
        if not _fits(known.get(key), len(prompts), self._target.info.vocab_size):
            say(f"{name}: the target answers {len(prompts)} prompts ...")
            with self._target.stock():
                answers = answer(self._target, prompts, spec.max_new_tokens, spec.batch)
            known[key] = [one.answer for one in answers]
            if keep:
                write_text(kept, json.dumps(known))
        pairs = zip(prompts, known[key], strict=True)
        return [Answer(tuple(prompt), tuple(said)) for prompt, said in pairs]

    def __call__(self, head: TrainableHead, *, final: bool = True) -> Measured:
        """Return the figures of a head; the target's own attention must be in place.

        Args:
            head: the head.
            final: measure on all prompts, not only on those that the best head is chosen by.
        """
        sets = self._sets
        if not final and HELDOUT in sets:
            sets = {HELDOUT: sets[HELDOUT]}
        depths = [len(path) for paths in self._trees.values() for path in paths]
        levels = max([self._spec.chain, *depths])
        replays = {
            name: replay_answers(answers, self._features, head, levels, device=self._target.device)
            for name, answers in sets.items()
        }
        return Measured(
            tau={
                tree: {name: tau(found, paths) for name, found in replays.items()}
                for tree, paths in self._trees.items()
            },
            n_alpha={name: n_alpha(found, self._spec.chain) for name, found in replays.items()},
        )
