"""What trees would accept, from ranks alone: by kind of text, and by position in the text.

Knows ranks and trees of fixed shape; no target, and nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eagle.errors import DataError
from eagle.train.evaluation.rates import Ranked
from eagle.train.evaluation.replay import tau

__all__ = ["Place", "Simulation", "simulate"]

_FEWEST = 30  # positions, under which a mean says nothing

Paths = frozenset[tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """What a tree accepts behind the positions of a part of the texts.

    Attributes:
        start: first position, in tokens from the beginning of the prompt.
        end: the position behind the last.
        tau: tokens of a cycle whose root lies there: accepted ones and the bonus token.
        error: standard error of that mean, the positions taken for independent.
        positions: how many there are.
    """

    start: int
    end: int
    tau: float
    error: float
    positions: int


@dataclass(frozen=True)
class Simulation:
    """Tau of trees over sets of answers.

    Attributes:
        tau: by tree, then by set.
        places: by set, along the text, of the first tree.
        tree: the first tree's title.
    """

    tau: Mapping[str, Mapping[str, float]]
    places: Mapping[str, Sequence[Place]]
    tree: str

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        places = {name: [asdict(one) for one in found] for name, found in self.places.items()}
        return {"tau": self.tau, "tree": self.tree, "positions": places}


def simulate(sets: Mapping[str, Ranked], trees: Mapping[str, Paths], bins: int = 12) -> Simulation:
    """Return what trees accept of the target's answers.

    Args:
        sets: answers and their ranks, by what kind of text they are.
        trees: rank paths, by title; at least one.
        bins: parts of equal width that the longest text has.

    Raises:
        DataError: no answer has two tokens.
    """
    if not any(replay.ranks.shape[1] > 1 for one in sets.values() for replay in one.replays):
        raise DataError("there is no answer of two tokens or more to simulate trees on")
    taus = {
        title: {name: tau(one.replays, paths) for name, one in sets.items()}
        for title, paths in trees.items()
    }
    first = next(iter(trees))
    longest = max(len(a.prompt) + len(a.answer) for one in sets.values() for a in one.answers)
    width = max(1, -(-longest // bins))
    places = {name: _places(one, trees[first], width) for name, one in sets.items()}
    return Simulation(taus, places, first)


def _places(ranked: Ranked, paths: Collection[tuple[int, ...]], width: int) -> list[Place]:
    """Return the means of bins so wide; every position counts as a root, not only cycles' own."""
    bins: dict[int, list[int]] = {}
    depth = max((len(path) for path in paths), default=0)
    for answer, replay in zip(ranked.answers, ranked.replays, strict=True):
        # Where the answer is about to end a tree has nothing more to be right about.
        for root in range(max(0, replay.ranks.shape[1] - 1 - depth)):
            found = bins.setdefault((len(answer.prompt) + root) // width, [])
            found.append(replay.accepted(root, paths) + 1)
    places = []
    for number, values in sorted(bins.items()):
        if len(values) < _FEWEST:
            continue
        mean, error = float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))
        places.append(Place(number * width, (number + 1) * width, mean, error, len(values)))
    return places
