"""The middle of some measurements and how far they spread; knows numbers only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Quartiles"]


@dataclass(frozen=True)
class Quartiles:
    """Median and interquartile range.

    Attributes:
        low: a quarter of the values is below it.
        median: half of them.
        high: three quarters.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quartiles:
        """Return those of some values, at least one, interpolated between neighbours.

        >>> Quartiles.of([1, 2, 3, 4, 5])
        Quartiles(low=2.0, median=3.0, high=4.0)
        """
        sample = list(values)
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        return cls(*statistics.quantiles(sample, n=4, method="inclusive"))

    def show(self, digits: int = 2) -> str:
        """Return it as text, the range left out where all values are one."""
        median = f"{self.median:.{digits}f}"
        if self.low == self.high:
            return median
        return f"{median} ({self.low:.{digits}f}-{self.high:.{digits}f})"
