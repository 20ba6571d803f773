"""Rank replay: tau and n-alpha at temperature 0 without decoding.

The target answers once. The ranks that the head gives to each true token, at every level and
position, then decide what any tree of fixed shape would have accepted. Knows ranks and trees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle.errors import SpecError
from eagle.plugin import Sampling, SamplingParams, TreeBuilder, UniformDraws
from eagle.train.spec import DEEPEST

__all__ = ["Replay", "fixed_paths", "n_alpha", "tau"]

Path = tuple[int, ...]
_LADDERS = 16
"""Draft distributions, of all kinds, on which a tree must take one shape to count as fixed."""


@dataclass(frozen=True)
class Replay:
    """The ranks of the tokens of one answer.

    Attributes:
        ranks: int64 ``[D, m]``; entry (d, i) is the rank of answer token i + d + 1 among the
            head's candidates d + 1 levels below a root at answer token i. Entries behind the end
            of the answer mean nothing.
    """

    ranks: NDArray[np.int64]

    def accepted(self, root: int, paths: Collection[Path]) -> int:
        """Return how many draft tokens a tree of these rank paths has accepted behind a root."""
        levels, length = self.ranks.shape
        path: Path = ()
        for level in range(min(levels, length - 1 - root)):
            path = (*path, int(self.ranks[level, root]))
            if path not in paths:
                return level
        return len(path)

    def walk(self, paths: Collection[Path]) -> list[tuple[int, int]]:
        """Return ``(root, accepted)`` of each cycle; the first root is the first answer token."""
        cycles, root = [], 0
        while root < self.ranks.shape[1] - 1:
            cycles.append((root, self.accepted(root, paths)))
            root += cycles[-1][1] + 1
        return cycles


def tau(replays: Iterable[Replay], paths: Collection[Path]) -> float:
    """Return the tokens committed per cycle over all answers, NaN if there is no cycle.

    Args:
        replays: the answers.
        paths: the tree, as rank paths from the root; with each path, its beginnings.
    """
    tokens = cycles = 0
    for replay in replays:
        length = replay.ranks.shape[1]
        for root, accepted in replay.walk(paths):
            tokens += min(accepted + 1, length - 1 - root)
            cycles += 1
    return tokens / cycles if cycles else float("nan")


def n_alpha(replays: Iterable[Replay], levels: int) -> list[float]:
    """Return the acceptance rate of each level of a chain, given that those before were accepted.

    Definition: arXiv 2401.15077, section 4 (n-alpha, measured on chains).

    Args:
        replays: the answers.
        levels: of the chain.
    """
    chain = {(0,) * depth for depth in range(1, levels + 1)}
    tried, passed = [0] * levels, [0] * levels
    for replay in replays:
        for root, accepted in replay.walk(chain):
            left = replay.ranks.shape[1] - 1 - root
            for level in range(min(levels, left, accepted + 1)):
                tried[level] += 1
                passed[level] += level < accepted
    return [p / t if t else float("nan") for p, t in zip(passed, tried, strict=True)]


class _Ladder:
    """A drafter whose every distribution ranks token r as the r-th, so that tokens are ranks.

    Some are nearly flat and some steep, as chance has it.
    """

    draft_vocab = None

    def __init__(self, width: int, seed: int) -> None:
        self.sampling = Sampling.of([SamplingParams()], "cpu")
        self.root = torch.zeros(1, dtype=torch.int64)
        self._ranks = torch.arange(width, dtype=torch.float32)
        self._chance = torch.Generator().manual_seed(seed)

    def begin(self) -> Tensor:
        """Return the logits of what follows the root, ``[1, 1, V]``."""
        return self.expand(self.root[None], self.root[None])

    def levels(self) -> None:
        """Return None: no two nodes have the same distribution."""
        return

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        """Return the logits of what follows each token, ``[1, W, V]``."""
        steepness = 10 ** (4 * torch.rand(*tokens.shape, 1, generator=self._chance) - 3)
        return -steepness * self._ranks


def fixed_paths(builder: TreeBuilder, name: str) -> frozenset[Path]:
    """Return the rank paths of the trees that a builder makes at temperature 0.

    Found by having it draft where ranks are all there is to see; any builder can be asked.

    Args:
        builder: the tree builder.
        name: what messages call it.

    Raises:
        SpecError: its trees depend on the draft distributions, so replay cannot measure them, or
            are too deep for it.
    """
    shape = builder.shape
    if shape.depth > DEEPEST:
        raise SpecError(
            f"the tree {name!r} is {shape.depth} levels deep; rank replay measures up to {DEEPEST}"
        )
    # Different distributions lead a builder that looks at them to different shapes.
    found = set()
    for seed in range(_LADDERS):
        draws = UniformDraws(torch.zeros(1, max(1, builder.uniforms)))
        tree = builder.build(_Ladder(max(64, 4 * shape.nodes), seed), draws)
        parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
        paths: dict[int, Path] = {0: ()}
        for node in range(1, len(parents)):
            if parents[node] >= 0:
                paths[node] = (*paths[parents[node]], tokens[node])
        found.add(frozenset(paths.values()) - {()})
    if len(found) > 1:
        raise SpecError(
            f"the tree {name!r} takes its shape from the draft distributions; rank replay "
            "measures trees of fixed shape only (chain, static)"
        )
    return found.pop()
