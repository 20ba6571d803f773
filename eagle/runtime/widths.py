"""Over how many slots captured cycles run: few different numbers; knows numbers alone."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Widths", "bucket"]

_WORTH = 64  # cycles over too many slots, before fewer are captured


def bucket(slots: int) -> int:
    """Return the power of two from a number of slots on.

    >>> [bucket(slots) for slots in (1, 2, 3, 8, 9)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (slots - 1).bit_length()


class Widths:
    """The numbers of slots that cycles were captured over.

    Capturing takes as long as many cycles, so fewer slots than were captured before are worth it
    where that many were needed for a while.
    """

    def __init__(self) -> None:
        self._captured: set[int] = set()
        self._asked_for: dict[int, int] = {}  # cycles that fewer would have done for

    def expect(self, widths: Iterable[int]) -> None:
        """Take note that cycles over so many slots are captured, for `choose` to choose them."""
        self._captured.update(widths)

    def choose(self, needed: int, total: int, *, one_apart: bool) -> int:
        """Return over how many of *total* slots the next cycle runs, of which *needed* matter.

        Args:
            needed: how many matter.
            total: how many there are.
            one_apart: whether one slot has code of its own, which others would wait for.
        """
        asked = min(bucket(needed), total)
        larger = [width for width in self._captured if width > asked]
        if one_apart and asked == 1 and larger and asked not in self._captured:
            return min(larger)
        if asked not in self._captured and larger:
            self._asked_for[asked] = self._asked_for.get(asked, 0) + 1
            if self._asked_for[asked] < _WORTH:
                return min(larger)
        self._captured.add(asked)
        return asked
