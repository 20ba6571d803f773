"""What a token tree is worth and what it costs: the figures behind `size: auto`.

Knows how often a draft head's candidates are right and how long the parts of a cycle take, and
how to weigh them; measures neither (see `eagle.train.evaluation.rates` and `eagle.sizing.costing`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eagle.errors import CheckpointError
from eagle.host import write_text

__all__ = ["RATES_FILE", "Budget", "Costs", "Curve", "Fit", "Option", "RankRates", "steady"]

RATES_FILE = "acceptance.json"
"""Beside a head's weights: its `RankRates`."""

_ROUNDING = 1e-3  # what the probabilities of a level may exceed 1 by, as they are written rounded

RankPath = tuple[int, ...]
Share = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def steady(values: Sequence[float]) -> list[float]:
    """Return the never falling values that are nearest to some measured ones.

    By pooling neighbours that are out of order (isotonic regression, least squares).

    >>> steady([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] >= mean:
            above, size = pools.pop()
            mean, count = (above * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Curve(_Measured):
    """Milliseconds by a size: straight lines between what was measured, and beyond.

    Attributes:
        points: size and milliseconds, sizes rising; more never takes less.
    """

    points: Annotated[tuple[tuple[Annotated[int, Field(ge=1)], Duration], ...], Field(min_length=1)]

    @classmethod
    def of(cls, measured: Iterable[tuple[int, float]]) -> Curve:
        """Return the curve through some figures; what seems to fall is taken for noise."""
        sizes, times = zip(*sorted(measured), strict=True)
        return cls(points=tuple(zip(sizes, steady(times), strict=True)))

    @model_validator(mode="after")
    def _rising(self) -> Curve:
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(self.points)):
            raise ValueError("sizes should rise, and milliseconds never fall")
        return self

    @property
    def largest(self) -> int:
        """The largest size that was measured."""
        return self.points[-1][0]

    def __call__(self, size: int) -> float:
        """Return the milliseconds of a size; below the smallest measured one, that one's."""
        points = self.points
        if size <= points[0][0] or len(points) == 1:
            return points[0][1]
        place = next((i for i, p in enumerate(points) if p[0] >= size), len(points) - 1)
        (x0, y0), (x1, y1) = points[place - 1], points[place]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)


class Costs(_Measured):
    """Milliseconds of the parts of one cycle over some slots, one by default, at temperature 0.

    Attributes:
        verify: the target's pass over N nodes, the root included.
        begin: drafting the root's children.
        level: drafting one further level, by how many nodes the head extends for it.
        rest: accepting, and committing with the head's absorbing.
        context: committed tokens that were attended to.
        plain: a whole cycle that drafts nothing; None where that was not measured.
    """

    verify: Curve
    begin: Duration
    level: Curve
    rest: Duration
    context: Annotated[int, Field(ge=1)]
    plain: Duration | None = None

    @property
    def undrafted(self) -> float:
        """The milliseconds of a cycle that drafts nothing."""
        return self.verify(1) + self.rest if self.plain is None else self.plain

    def cycle(self, nodes: int, extended: Sequence[int]) -> float:
        """Return the milliseconds of a cycle.

        Args:
            nodes: N, the root included.
            extended: how many nodes the head extends for each level below the first.
        """
        return self.verify(nodes) + self.begin + sum(map(self.level, extended)) + self.rest


class RankRates(_Measured):
    """How often the true token has which rank among a draft head's candidates.

    Attributes:
        levels: for each drafted level the probability of every rank, from 0, given that all
            nodes above are the text; measured at temperature 0 by rank replay.
        positions: how many roots were looked at.
        source: what text that was.
    """

    levels: Annotated[tuple[tuple[Share, ...], ...], Field(min_length=1)]
    positions: Annotated[int, Field(ge=1)]
    source: str

    @model_validator(mode="after")
    def _possible(self) -> RankRates:
        for number, level in enumerate(self.levels):
            if any(low > high for high, low in pairwise(level)):
                raise ValueError(f"levels[{number}]: a lower rank should never be less likely")
            if sum(level) > 1 + _ROUNDING:
                raise ValueError(f"levels[{number}]: the ranks' probabilities exceed 1 together")
        return self

    @classmethod
    def read(cls, folder: Path) -> RankRates | None:
        """Return the rates beside a head's weights, or None where there are none.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = folder / RATES_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            place = ".".join(map(str, wrong["loc"]))
            raise CheckpointError(
                f"{path} does not say how often a draft head is right: "
                f"{place + ': ' if place else ''}{wrong['msg']}; remove it, or measure the head "
                "anew with `eagle bench ranks`"
            ) from error

    def write(self, folder: Path) -> Path:
        """Write the file that `read` reads, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        path = folder / RATES_FILE
        try:
            write_text(path, self.model_dump_json() + "\n")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
        return path

    def likeliest(self, count: int, depth: int) -> list[tuple[RankPath, float]]:
        """Return the likeliest rank paths with their probabilities, the likeliest first.

        As a path is never likelier than its beginnings, they form a tree, and no other tree of as
        many nodes and levels has more of its nodes accepted on average (as in Sequoia, arXiv
        2402.12374, and OPT-Tree, arXiv 2406.17276). Fewer come back where no others are possible.

        Args:
            count: how many.
            depth: the longest path.
        """
        depth = min(depth, len(self.levels))
        found: list[tuple[RankPath, float]] = []
        # A path's next sibling is never likelier than itself either, so two followers do.
        heap = self._entry(1.0, ()) if depth else []
        while heap and len(found) < count:
            _, _, path, above = heapq.heappop(heap)
            level = self.levels[len(path) - 1]
            value = above * level[path[-1]]
            found.append((path, value))
            if path[-1] + 1 < len(level) and above * level[path[-1] + 1] > 0:
                sibling = (*path[:-1], path[-1] + 1)
                heapq.heappush(heap, (-above * level[sibling[-1]], len(path), sibling, above))
            if len(path) < depth:
                for entry in self._entry(value, path):
                    heapq.heappush(heap, entry)
        return found

    def _entry(self, value: float, path: RankPath) -> list[tuple[float, int, RankPath, float]]:
        """Return the first child of a path as an entry of the heap, if it is possible."""
        level = self.levels[len(path)]
        if not level or value * level[0] <= 0:
            return []
        return [(-value * level[0], len(path) + 1, (*path, 0), value)]


@dataclass(frozen=True)
class Option:
    """One size that a tree may have, and what to expect of it.

    Attributes:
        nodes: N, the root included.
        depth: D.
        tokens: expected tokens per cycle, the bonus token included.
        milliseconds: of a cycle, the host's work left out.
        settings: with which a spec gets this tree; without its strategy's name.
    """

    nodes: int
    depth: int
    tokens: float
    milliseconds: float
    settings: dict[str, Any]

    @property
    def rate(self) -> float:
        """Expected tokens per second."""
        return 1e3 * self.tokens / self.milliseconds


@dataclass(frozen=True)
class Budget:
    """All that a tree's size is chosen by.

    Attributes:
        rates: of the draft head.
        costs: of this machine.
    """

    rates: RankRates
    costs: Costs


BuilderT = TypeVar("BuilderT", covariant=True)


@dataclass(frozen=True)
class Fit(Generic[BuilderT]):
    """A tree builder of the size that fits.

    Attributes:
        builder: it.
        chosen: the size that it has.
        options: the best size of each depth, for people to see what was weighed.
    """

    builder: BuilderT
    chosen: Option
    options: tuple[Option, ...]

    @classmethod
    def best(
        cls, options: Iterable[Option], build: Callable[[Option], BuilderT]
    ) -> Fit[BuilderT] | None:
        """Return the fit with the most expected tokens per second, None without an option.

        Args:
            options: of equally good ones the smaller tree is taken.
            build: makes the builder of the chosen one.
        """
        by_depth: dict[int, Option] = {}
        for option in sorted(options, key=lambda o: (o.nodes, o.depth)):
            known = by_depth.get(option.depth)
            if math.isfinite(option.rate) and (known is None or option.rate > known.rate):
                by_depth[option.depth] = option
        if not by_depth:
            return None
        shown = tuple(by_depth[depth] for depth in sorted(by_depth))
        chosen = max(shown, key=lambda option: (option.rate, -option.nodes))
        return cls(build(chosen), chosen, shown)
