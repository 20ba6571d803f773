"""Oracles in the place of chance: every outcome of every draw, with its probability.

They know the seam that all randomness goes through (`eagle.plugin.Draws` and its scalar twin);
they do not know what draws from it. `TableDrafter` stands in for a draft head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.plugin import Sampling, TokenTree

__all__ = [
    "EnumeratingDraws",
    "ScalarEnumeratingDraws",
    "TableDrafter",
    "enumerate_draws",
    "enumerate_scalar_draws",
]

T = TypeVar("T")

_SLIVER = 1e-13
"""A share of what is drawn from that is smaller is rounding, which another slot of a batch need not
have: no outcome, or a script would be followed in one slot otherwise than in another."""

_ROUNDING = 1e-9
"""By how much a probability may leave [0, 1] and still be rounding."""


class EnumeratingDraws:
    """Draws that follow one script of outcomes per lane, and note the scripts not yet followed.

    A lane advances in its script only where more than one outcome is possible. So what a lane
    is asked after it has stopped (probability 0, no weight) does not count, nor how often.

    Attributes:
        probability: float64 ``[B]``, of the outcomes followed so far.
        forks: int64 ``[*, S]`` each, scripts of outcomes that were possible and not followed.
        origins: int64 ``[*]`` each, the lanes that `forks` branch off from.
        used: uniforms per lane that the same calls would have read in production.
    """

    def __init__(self, scripts: Tensor) -> None:
        """Follow scripts, int64 ``[B, S]``, -1 where a lane is free to choose."""
        self._trace = scripts.clone()
        self._cursor = torch.zeros_like(scripts[:, 0])
        self.probability = torch.ones(scripts.shape[0], dtype=torch.float64)
        self.forks: list[Tensor] = []
        self.origins: list[Tensor] = []
        self.used = 0
        self._noise = torch.empty(scripts.shape[0], 0, 2, dtype=torch.float64)

    @property
    def trace(self) -> Tensor:
        """Scripts, int64 ``[B, S]``, that lead where the lanes are: the outcomes so far."""
        return self._trace

    @property
    def lanes(self) -> int:
        """B, how many slots a caller must present."""
        return self._trace.shape[0]

    def bernoulli(self, probs: Tensor) -> Tensor:
        """See `eagle.plugin.Draws.bernoulli`.

        Raises:
            AssertionError: a probability is NaN or outside [0, 1].
        """
        self.used += 1
        wrong = ~((probs >= -_ROUNDING) & (probs <= 1 + _ROUNDING))
        if probs.shape != (self.lanes,) or bool(wrong.any()):
            raise AssertionError(
                f"bernoulli() needs probabilities of shape [{self.lanes}] in [0, 1], "
                f"but was asked for {probs.tolist()}"
            )
        true = probs.double().clamp(0, 1)
        return self._follow(torch.stack((1 - true, true), 1)) == 1

    def categorical(self, weights: Tensor) -> Tensor:
        """See `eagle.plugin.Draws.categorical`.

        Raises:
            AssertionError: a weight is NaN, infinite or negative.
        """
        if weights.dim() == 3:
            return torch.stack([self.categorical(column) for column in weights.unbind(1)], 1)
        self.used += 1
        if weights.dim() != 2 or not bool(((weights >= 0) & weights.isfinite()).all()):
            raise AssertionError(
                f"categorical() needs weights of shape [{self.lanes}, V], finite and not "
                f"negative, but was asked for {weights.tolist()}"
            )
        return self._follow(weights.double())

    def uniform(self, cuts: Callable[[], Tensor]) -> Tensor:
        """See `eagle.plugin.Draws.uniform`: the middle of each interval, with its length.

        Raises:
            AssertionError: a cut is NaN or outside [0, 1].
        """
        self.used += 1
        wanted = cuts().double()
        wrong = ~((wanted >= -_ROUNDING) & (wanted <= 1 + _ROUNDING))
        if wanted.dim() != 2 or wanted.shape[0] != self.lanes or bool(wrong.any()):
            raise AssertionError(
                f"uniform() needs cuts of shape [{self.lanes}, K] in [0, 1], but was given "
                f"{wanted.tolist()}"
            )
        ends = F.pad(wanted.clamp(0, 1).sort(1).values, (1, 0))
        ends = F.pad(ends, (0, 1), value=1.0)
        chosen = self._follow(ends.diff(dim=1))[:, None]
        return ((ends.gather(1, chosen) + ends.gather(1, chosen + 1)) / 2)[:, 0]

    def race(
        self, weights: Tensor, depth: int, count: int = 1, vocab: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `eagle.plugin.Draws.race`; positions are counted from the root of this cycle."""
        return self.race_at(weights, torch.full((self.lanes,), depth), count)

    def race_at(self, weights: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Race at some positions, int64 ``[B]``.

        Any noise will do that makes of all weights draws in proportion to them, and one that can be
        enumerated is one number in [0, 1) for each position, which falls into the share of a token.
        What is known of it is an interval, which every race narrows.

        Returns:
            See `eagle.plugin.Draws.race`; of how fast tokens were, their order alone is told.

        Raises:
            AssertionError: a weight is NaN, infinite or negative.
        """
        if weights.dim() == 3:
            found = [self.race_at(own, positions, count) for own in weights.unbind(1)]
            return torch.stack([own[0] for own in found], 1), torch.stack([o[1] for o in found], 1)
        if weights.dim() != 2 or not bool(((weights >= 0) & weights.isfinite()).all()):
            raise AssertionError(
                f"race() needs weights of shape [{self.lanes}, V], finite and not negative, but "
                f"was asked for {weights.tolist()}"
            )
        if (missing := int(positions.max()) + 1 - self._noise.shape[1]) > 0:
            fresh = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(self.lanes, missing, 2)
            self._noise = torch.cat((self._noise, fresh), 1)
        lane = torch.arange(self.lanes)
        left, free = weights.double(), torch.ones_like(weights, dtype=torch.bool)
        places: list[Tensor] = []
        paces: list[Tensor] = []
        for rank in range(count):
            mass = left.sum(1, keepdim=True)
            real = mass[:, 0] > 0
            ends = F.pad((left / mass.where(mass > 0, 1)).cumsum(1), (1, 0))
            ends[:, -1] = ends[:, -1].where(~real, 1.0)
            low, high = self._noise[lane, positions].unbind(1)
            inside = torch.stack(
                (
                    torch.maximum(ends[:, :-1], low[:, None]),
                    torch.minimum(ends[:, 1:], high[:, None]),
                )
            )
            shares = (inside[1] - inside[0]).where(
                (left > 0) & (inside[1] - inside[0] > _SLIVER), 0
            )
            drawn = self._follow(shares)
            narrowed = inside[:, lane, drawn].T
            self._noise[lane, positions] = narrowed.where(
                real[:, None], torch.stack((low, high), 1)
            )
            place = drawn.where(real, free.to(torch.uint8).argmax(1))
            free[lane, place] = False
            left = left.where(free, 0)
            places.append(place)
            paces.append(real / (rank + 1.0))
        return torch.stack(places, 1), torch.stack(paces, 1).double()

    def noise(self, lane: int, first: int) -> tuple[float, ...]:
        """Return what is known of a lane's noise from a position on, rounded."""
        return tuple(round(end, 9) for end in self._noise[lane, first:].flatten().tolist())

    def _follow(self, weights: Tensor) -> Tensor:
        """Return each lane's outcome, int64 ``[B]``, by weights ``[B, outcomes]``."""
        possible = weights > _SLIVER * weights.sum(1, keepdim=True)
        branching = possible.sum(1) > 1
        if int(self._cursor.max()) >= self._trace.shape[1]:
            raise AssertionError(
                f"a lane came to more than {self._trace.shape[1]} draws with several outcomes"
            )
        place = self._cursor[:, None]
        scripted = self._trace.gather(1, place)[:, 0]
        first = possible.to(torch.uint8).argmax(1)
        free = branching & (scripted < 0)
        again = branching & ~free
        width = weights.shape[1]
        inside = possible.gather(1, scripted.clamp(0, width - 1)[:, None])[:, 0]
        if bool((again & ~(inside & (scripted < width))).any()):
            raise AssertionError(
                "an outcome that was possible is not when the lane is asked again: what is drawn "
                "depends on more than the draws before"
            )
        outcome = scripted.where(again, first)

        others = possible & free[:, None] & (torch.arange(weights.shape[1]) != first[:, None])
        lane, other = others.nonzero(as_tuple=True)
        self.origins.append(lane)
        self.forks.append(self._trace[lane].scatter(1, place[lane], other[:, None]))

        here = self._trace.gather(1, place)
        self._trace.scatter_(1, place, outcome[:, None].where(branching[:, None], here))
        chance = (weights.gather(1, outcome[:, None]) / weights.sum(1, keepdim=True))[:, 0]
        self.probability *= chance.where(branching, 1.0)
        self._cursor += branching
        return outcome


def enumerate_draws(
    run: Callable[[EnumeratingDraws], T], *, capacity: int = 64, lanes: int = 8192
) -> Iterator[tuple[T, EnumeratingDraws]]:
    """Run something on every outcome of its draws, many outcomes at a time.

    Every lane of every run ends in an outcome of its own; their probabilities sum to 1.

    Args:
        run: takes draws and works on ``draws.lanes`` slots that differ in nothing else.
        capacity: draws with several outcomes that one lane may come to.
        lanes: most slots in one run.

    Yields:
        What `run` returned, with its draws.
    """
    waiting = torch.full((1, capacity), -1)
    while len(waiting):
        draws = EnumeratingDraws(waiting[:lanes])
        yield run(draws), draws
        waiting = torch.cat((waiting[lanes:], *draws.forks))


class ScalarEnumeratingDraws:
    """The scalar twin of `EnumeratingDraws`: one lane, in exact fractions.

    Attributes:
        probability: of the outcomes followed so far.
        forks: scripts of outcomes that were possible and not followed.
    """

    def __init__(self, script: tuple[int, ...]) -> None:
        self._script = script
        self._trace: list[int] = []
        self.probability = Fraction(1)
        self.forks: list[tuple[int, ...]] = []

    def bernoulli(self, prob: Fraction | float) -> bool:
        """Return True with a probability.

        Raises:
            AssertionError: the probability is outside [0, 1].
        """
        if not 0 <= prob <= 1:
            raise AssertionError(f"bernoulli() needs a probability in [0, 1], not {prob}")
        return self._follow((1 - Fraction(prob), Fraction(prob))) == 1

    def categorical(self, weights: Sequence[Fraction | float]) -> int:
        """Return an index drawn in proportion to weights; 0 where there is none.

        Raises:
            AssertionError: a weight is negative.
        """
        if min(weights) < 0:
            raise AssertionError(f"categorical() needs weights that are not negative: {weights}")
        return self._follow([Fraction(weight) for weight in weights])

    def uniform(self, cuts: Callable[[], Sequence[Fraction | float]]) -> Fraction:
        """See `eagle.plugin.Draws.uniform`: the middle of an interval between cuts."""
        ends = [Fraction(0), *sorted(Fraction(cut) for cut in cuts()), Fraction(1)]
        chosen = self._follow([high - low for low, high in pairwise(ends)])
        return (ends[chosen] + ends[chosen + 1]) / 2

    def _follow(self, weights: Sequence[Fraction]) -> int:
        possible = [index for index, weight in enumerate(weights) if weight > 0]
        if len(possible) < 2:
            return possible[0] if possible else 0
        if len(self._trace) < len(self._script):
            outcome = self._script[len(self._trace)]
        else:
            outcome, *others = possible
            self.forks += [(*self._trace, other) for other in others]
        self._trace.append(outcome)
        self.probability *= weights[outcome] / sum(weights)
        return outcome


def enumerate_scalar_draws(
    run: Callable[[ScalarEnumeratingDraws], T],
) -> Iterator[tuple[T, Fraction]]:
    """Run something on every outcome of its draws; yield its results and their probabilities."""
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        draws = ScalarEnumeratingDraws(waiting.pop())
        yield run(draws), draws.probability
        waiting += draws.forks


class TableDrafter:
    """An `eagle.plugin.Drafter` whose draft logits are looked up by the drafted text.

    A text of d tokens behind the root has the code ``sum(token[i] * V ** (d - 1 - i))``.

    Args:
        tables: draft logits ``[V ** d, V]`` by code, for d from 0.
        sampling: parameters of the B slots.
        root: the root's token in every slot.
        draft_vocab: int64 ``[Vd]``, of drafts that have a vocabulary of their own: tables are then
            ``[V ** d, Vd]``.
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        sampling: Sampling,
        root: int = 0,
        draft_vocab: Tensor | None = None,
    ) -> None:
        slots = sampling.temperature.shape[0]
        self.sampling = sampling
        self.root = torch.full((slots,), root)
        self._tables, self.draft_vocab = tables, draft_vocab
        # A table of no drafted token has one row, that of one token has V.
        self._size = len(tables[1]) if len(tables) > 1 else tables[0].shape[1]
        # Entry 0 is the root, entry e + 1 the e-th expanded node.
        self._codes = torch.zeros(slots, 1, dtype=torch.int64)
        self._depths = torch.zeros(slots, 1, dtype=torch.int64)

    def begin(self) -> Tensor:
        """See `eagle.plugin.Drafter.begin`."""
        return self._tables[0][self._codes[:, :1]]

    def levels(self) -> None:
        """Return None: drafts depend on the drafted text."""
        return

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        """See `eagle.plugin.Drafter.expand`.

        Raises:
            AssertionError: a token is not in the vocabulary, or a parent was not yet expanded.
        """
        vocab = self._tables[0].shape[1]
        known = self._codes.shape[1] - 1
        if tokens.shape != parents.shape or not bool(
            ((tokens >= 0) & (tokens < vocab) & (parents >= -1) & (parents < known)).all()
        ):
            raise AssertionError(
                f"expand() needs tokens below {vocab} and parents from -1 to {known - 1}, both "
                f"[B, W], but was asked for {tokens.tolist()} under {parents.tolist()}"
            )
        codes = self._codes.gather(1, parents + 1) * self._size + self._targets(tokens)
        depths = self._depths.gather(1, parents + 1) + 1
        self._codes = torch.cat((self._codes, codes), 1)
        self._depths = torch.cat((self._depths, depths), 1)
        offsets = torch.tensor([0, *[len(table) for table in self._tables]]).cumsum(0)
        return torch.cat(list(self._tables))[offsets[depths] + codes]

    def finish(self, tree: TokenTree) -> TokenTree:
        """Return a builder's tree with the target's token ids, as a cycle does."""
        if self.draft_vocab is None:
            return tree
        tokens = torch.cat((tree.tokens[:, :1], self._targets(tree.tokens[:, 1:])), dim=1)
        return replace(tree, tokens=tokens, draft_vocab=self.draft_vocab)

    def _targets(self, tokens: Tensor) -> Tensor:
        return tokens if self.draft_vocab is None else self.draft_vocab[tokens]
