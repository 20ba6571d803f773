"""How often a lookup was right of late, in one request; knows lengths of matches, not where from.

What a lookup would have proposed can be compared with what was said whether it was drafted or not,
so nothing need be tried out, and nothing but committed text decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Generic, Protocol, TypeVar

from pydantic import Field

from eagle.plugin import TargetInfo

__all__ = ["Confidence", "Reader", "Sure", "Told"]

Sure = Annotated[
    float, Field(ge=0, le=1, description="share of right guesses of late to offer any")
]
"""A setting of what looks text up; see `Told`."""

_KEPT = 0.9  # how much of what was seen counts after one more: the last ten or so do
_WEIGHT = 2.0  # what a guess from nothing counts for, in observations
_LEAST = 0.1  # levels that are reached less often than this are not worth a node
_LENGTHS = 8  # matches of this length and longer are one kind


class Reader(Protocol):
    """What reads one text, token by token, and says what may follow."""

    def push(self, token: int) -> None:
        """Read one token more."""
        ...

    def guess(self) -> tuple[int, int] | None:
        """Return the likeliest next token and the length of the match that it follows from."""
        ...


ReaderT = TypeVar("ReaderT", bound=Reader)


class Confidence:
    """A share of right guesses for each length of match."""

    def __init__(self) -> None:
        self._right = [0.0] * (_LENGTHS + 1)
        self._seen = [0.0] * (_LENGTHS + 1)

    def note(self, length: int, right: bool) -> None:
        """Take note of one guess."""
        kind = min(length, _LENGTHS)
        self._right[kind] = self._right[kind] * _KEPT + right
        self._seen[kind] = self._seen[kind] * _KEPT + 1

    def rate(self, length: int) -> float:
        """Return how often a guess from such a match is right.

        Where little is known of this length, by what is known of all; one half where that is
        nothing. A guess costs nothing to look at, so the first wrong ones may stop others.
        """
        kind = min(length, _LENGTHS)
        pooled = (sum(self._right) + _WEIGHT / 2) / (sum(self._seen) + _WEIGHT)
        return (self._right[kind] + _WEIGHT * pooled) / (self._seen[kind] + _WEIGHT)


class Told(Generic[ReaderT]):
    """The host's side of a drafter that looks text up: it reads along, and says how sure it is.

    Args:
        sure: the least share of right guesses with which something is offered.
    """

    def __init__(self, sure: float) -> None:
        self._sure = sure
        self._readers: dict[int, ReaderT] = {}
        self._confidence: dict[int, Confidence] = {}

    def feature_size(self, target: TargetInfo) -> int:
        """Return H: the last hidden state, which costs nothing where it is let pass."""
        return target.hidden_size

    def reader(self, slot: int, prompt: Sequence[int]) -> ReaderT:
        """Return what reads a new text, its prompt read."""
        raise NotImplementedError

    def begin_request(self, slot: int, prompt: Sequence[int]) -> None:
        """See `eagle.plugin.RequestAware`."""
        self._readers[slot] = self.reader(slot, prompt)
        self._confidence[slot] = Confidence()

    def end_request(self, slot: int, text: Sequence[int]) -> None:
        """See `eagle.plugin.RequestAware`."""
        self._readers.pop(slot, None)
        self._confidence.pop(slot, None)

    def follow(self, slot: int, tokens: Sequence[int]) -> None:
        """See `eagle.plugin.OfferingHead`."""
        reader, confidence = self._readers[slot], self._confidence[slot]
        for token in tokens:
            if (guess := reader.guess()) is not None:
                confidence.note(guess[1], guess[0] == token)
            reader.push(token)

    def offer(self, slots: int) -> Sequence[int]:
        """See `eagle.plugin.OfferingHead`: by how often guesses were right of late."""
        return [self.levels(slot) for slot in range(slots)]

    def levels(self, slot: int) -> int:
        """Return for how many levels a slot's lookup is sure enough, 0 for none."""
        reader = self._readers.get(slot)
        guess = reader.guess() if reader is not None else None
        if guess is None:
            return 0
        rate = self._confidence[slot].rate(guess[1])
        return 0 if rate < self._sure else max(1, int(math.log(_LEAST) / math.log(rate)))
