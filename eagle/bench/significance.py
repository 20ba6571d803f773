"""Do tokens follow given distributions? Tests of stated size, and their power, by simulation.

Knows counts and probabilities; it does not know what drew the tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from eagle.errors import RequestError

__all__ = ["Draws", "Power", "Rank", "Significance", "check_alpha", "examine"]

_ALPHAS = (0.001, 0.2)  # sizes that there are simulations enough for
_NULL = 4999  # simulations of the null: the smallest p-value is 1 / 5000
_ALTERNATIVES, _ALTERNATIVE = 10, 20  # times simulations of each: power to within 0.03
_POWER = 0.9
_SHARES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)
_GROUPS = (1, 2, 4, 8, 16)  # ranks up to these are counted together, and all behind them
_REPEATED = 5  # draws in one context from which on its own counts are looked at
_CHUNK = 1 << 22  # random numbers in memory at once


@dataclass(frozen=True)
class Draws:
    """Tokens drawn in U contexts, sorted into C cells: the likeliest ones, and all others.

    Attributes:
        counts: int64 ``[U, C]``, how often each cell was drawn; every context at least once.
        probs: float64 ``[U, C]``, probabilities that the counts are held against.
        other: float64 ``[U, C]``, the same by another valid pass of the target. What the null
            hypothesis draws from: where passes differ by rounding, so may what is tested.
    """

    counts: Tensor
    probs: Tensor
    other: Tensor

    @cached_property
    def sizes(self) -> Tensor:
        """Draws in each context, int64 ``[U]``."""
        return self.counts.sum(1)

    @property
    def total(self) -> int:
        """Draws in all contexts."""
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Rank:
    """How often a token of some rank, the target's likeliest being the first, was drawn.

    Attributes:
        first: the first rank that is counted here.
        last: the last one, or None for all that are less likely.
        expected: share of all draws, by the target's probabilities.
        observed: share of all draws.
    """

    first: int
    last: int | None
    expected: float
    observed: float


@dataclass(frozen=True)
class Power:
    """The smallest departure from the target that the test finds nine times out of ten.

    Attributes:
        departure: what is done instead of drawing from the target.
        share: in which share of the draws; None if the test would miss it even in all of them.
        distance: the total variation distance of such a distribution from the target's, mean over
            draws; None likewise.
    """

    departure: str
    share: float | None
    distance: float | None


@dataclass(frozen=True)
class Significance:
    """The outcome of `examine`.

    Attributes:
        alpha: the probability with which a decoder that is right is called wrong.
        p: the p-value of the whole test; below alpha, the tokens are not the target's.
        p_ranks: of the first part, unadjusted.
        p_contexts: of the second part, unadjusted.
        draws: tokens that were tested.
        contexts: different texts that they followed.
        repeated: contexts with draws enough for the second part.
        ranks: the figures behind the first part.
        power: against two departures.
    """

    alpha: float
    p: float
    p_ranks: float
    p_contexts: float
    draws: int
    contexts: int
    repeated: int
    ranks: tuple[Rank, ...]
    power: tuple[Power, ...]

    @property
    def holds(self) -> bool:
        """The tokens are consistent with the target's distribution."""
        return self.p >= self.alpha


def check_alpha(alpha: float) -> None:
    """Refuse a size that the simulations cannot tell from 0, or that says nothing.

    Raises:
        RequestError: with the bounds.
    """
    low, high = _ALPHAS
    if not low <= alpha <= high:
        raise RequestError(f"alpha is {alpha:g}; it should be from {low:g} to {high:g}")


def examine(
    draws: Draws,
    *,
    alpha: float,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Significance:
    """Test whether tokens follow their probabilities.

    Given the text before it, each draw is an independent one from a known distribution, so both
    statistics have a null distribution that can be simulated to any precision:

    - *ranks*: how often the likeliest, the second, the third or fourth, ... token came over all
      draws, less how often it should have, as a quadratic form in the inverse of the covariance.
      It looks at every draw, and finds a rule that is too fond of likely or of drafted tokens.
    - *contexts*: Pearson's sum over the cells of every context that was met often. It finds
      departures that go one way in one context and another way in the next.

    Both have 1 added to the variances, so that one rare token does not decide them.

    The smaller p-value counts, doubled (Bonferroni): both together have the size alpha.

    Args:
        draws: what was drawn, and what should have been.
        alpha: size of the test.
        seed: of the simulations.
        progress: called with simulations of the null that were made, and their number.

    Raises:
        RequestError: see `check_alpha`.
    """
    check_alpha(alpha)
    generator = torch.Generator(draws.counts.device).manual_seed(seed)
    statistics = _Statistics(draws)
    null = statistics.simulate(draws.other, _NULL, generator, lambda done: progress(done, _NULL))
    null = null.sort(dim=0).values
    beyond = (null >= statistics.of(draws.counts[None].double())[0]).sum(0)
    p_ranks, p_contexts = ((beyond + 1) / (_NULL + 1)).tolist()
    # Significant is what exceeds the level of either statistic.
    level = null[min(int((_NULL + 1) * (1 - alpha / 2)), _NULL) - 1]

    def found(share: float, taken: Tensor) -> bool:
        beyond = []
        for _ in range(_ALTERNATIVES):
            token = torch.multinomial(taken, 1, generator=generator)[:, 0]
            wrong = torch.nn.functional.one_hot(token, taken.shape[1]).double()
            mixed = draws.other + share * (wrong - draws.other)
            drawn = statistics.simulate(mixed, _ALTERNATIVE, generator)
            beyond.append((drawn > level).any(1))
        return bool(torch.cat(beyond).double().mean() >= _POWER)

    power = []
    for departure, taken in _departures(draws):
        least = bisect_left(_SHARES, True, key=partial(found, taken=taken))
        share = _SHARES[least] if least < len(_SHARES) else None
        apart = 1 - (taken * draws.other).sum(1)
        mean = float((apart * draws.sizes).sum() / draws.total)
        power.append(Power(departure, share, None if share is None else share * mean))

    groups = _groups(draws.counts.shape[1], draws.counts.device)
    expected = (draws.sizes[:, None] * draws.probs).sum(0) @ groups / draws.total
    shares = draws.counts.sum(0).double() @ groups / draws.total
    firsts = [1, *(last + 1 for last in _GROUPS)][: len(expected)]
    lasts = [*_GROUPS, None]
    return Significance(
        alpha=alpha,
        p=min(1.0, 2 * min(p_ranks, p_contexts)),
        p_ranks=p_ranks,
        p_contexts=p_contexts,
        draws=draws.total,
        contexts=len(draws.counts),
        repeated=int(statistics.repeated.sum()),
        ranks=tuple(map(Rank, firsts, lasts, expected.tolist(), shares.tolist())),
        power=tuple(power),
    )


def _groups(cells: int, device: torch.device) -> Tensor:
    """Return which group of ranks each cell is in, as a float64 matrix of zeros and ones."""
    bounds = torch.tensor(_GROUPS, device=device)
    group = torch.bucketize(torch.arange(1, cells + 1, device=device), bounds)
    return torch.nn.functional.one_hot(group).double()


def _departures(draws: Draws) -> tuple[tuple[str, Tensor], ...]:
    """Return what a wrong decoder might do: how it chooses the one token that it favours.

    Each is ``[U, C]``, probabilities of a context's cells to be the favourite. In the second they
    are the target's own, so that over many contexts no rank is favoured.
    """
    first = torch.zeros_like(draws.other)
    first[:, 0] = 1
    return (
        ("the likeliest token is taken without a draw", first),
        ("one token of each context, likely or not, is taken without a draw", draws.other),
    )


class _Statistics:
    """The two statistics of `examine`, for observed and for simulated counts."""

    def __init__(self, draws: Draws) -> None:
        sizes, probs = draws.sizes, draws.probs
        self.groups = _groups(probs.shape[1], probs.device)
        grouped = probs @ self.groups
        weighted = sizes[:, None] * grouped
        self.by_rank = weighted.sum(0)
        covariance = self.by_rank.diag() - grouped.T @ weighted
        self.precision = torch.linalg.inv(covariance + torch.eye(len(covariance)).to(covariance))
        self.repeated = sizes >= _REPEATED
        self.by_cell = (sizes[:, None] * probs)[self.repeated]
        # For each draw its context, and its context's place among the repeated ones, or -1.
        self.context = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        place = (self.repeated.cumsum(0) - 1).where(self.repeated, -1)
        self.place = place.repeat_interleave(sizes)

    def of(self, counts: Tensor) -> Tensor:
        """Return both statistics ``[R, 2]`` of counts ``[R, U, C]``."""
        return self._of(counts.sum(1) @ self.groups, counts[:, self.repeated])

    def _of(self, ranks: Tensor, cells: Tensor) -> Tensor:
        apart = ranks - self.by_rank
        squares = (cells - self.by_cell) ** 2 / (self.by_cell + 1)
        return torch.stack(((apart @ self.precision * apart).sum(1), squares.sum((1, 2))), 1)

    def simulate(
        self,
        probs: Tensor,
        count: int,
        generator: torch.Generator,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """Return both statistics ``[count, 2]`` of counts drawn from ``probs`` ``[U, C]``."""
        cells, groups = self.groups.shape
        total = probs.cumsum(1)
        total = (total / total[:, -1:])[self.context].contiguous()
        group = self.groups.argmax(1)
        often = self.place >= 0
        found: list[Tensor] = []
        done = 0
        while done < count:
            some = min(count - done, max(1, _CHUNK // max(len(total), self.by_cell.numel())))
            shape = (len(total), some)
            uniform = torch.rand(shape, dtype=total.dtype, device=total.device, generator=generator)
            drawn = torch.searchsorted(total, uniform, right=True).clamp(max=cells - 1)
            ranks = _tally(group[drawn], groups)
            own = _tally(self.place[often, None] * cells + drawn[often], self.by_cell.numel())
            found.append(self._of(ranks, own.view(some, *self.by_cell.shape)))
            done += some
            progress(done)
        return torch.cat(found)


def _tally(places: Tensor, size: int) -> Tensor:
    """Return how often each of *size* places occurs in a column of ``[N, R]``: ``[R, size]``."""
    tally = torch.zeros(places.shape[1], size, dtype=torch.float64, device=places.device)
    return tally.scatter_add_(1, places.T, torch.ones_like(tally[:1, :1]).expand_as(places.T))
