"""Who waits for a slot, and in which order; seats nobody."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable
from itertools import count

from eagle.decoding.requests import Request
from eagle.decoding.tickets import Ticket

__all__ = ["Line", "drained"]


class Line:
    """Those who wait, by priority and then as they came; its length is of those who were heard.

    Any thread may add some at any time. They stand in line from when they are heard, so that
    whoever goes by the line alone does not depend on when they came.
    """

    def __init__(self) -> None:
        self._arrived: deque[Ticket] = deque()
        self._heard: list[tuple[int, int, Ticket]] = []  # a heap
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._heard)

    @property
    def unheard(self) -> int:
        """How many came who were not heard yet."""
        return len(self._arrived)

    @property
    def first(self) -> Ticket:
        """Who is seated next."""
        return self._heard[0][2]

    @property
    def requests(self) -> list[Request]:
        """What is asked by those who were heard; the first one asks the first of it."""
        return [ticket.request for _, _, ticket in self._heard]

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Take in those who came."""
        self._arrived.extend(tickets)

    def hear(self) -> list[Ticket]:
        """Let those who came stand in line, but for who is over, and return them."""
        heard = [ticket for ticket in drained(self._arrived) if not ticket.over]
        for ticket in heard:
            heapq.heappush(self._heard, (-ticket.priority, next(self._numbers), ticket))
        return heard

    def pop(self) -> None:
        """Let the first one go."""
        heapq.heappop(self._heard)

    def drop(self, gone: Collection[Ticket]) -> None:
        """Let go of some, wherever they stand."""
        self._heard = [entry for entry in self._heard if entry[2] not in gone]
        heapq.heapify(self._heard)

    def clear(self) -> list[Ticket]:
        """Let all go, heard or not, and return them."""
        everybody = [*drained(self._arrived), *(ticket for _, _, ticket in self._heard)]
        self._heard.clear()
        return everybody


def drained(tickets: deque[Ticket]) -> list[Ticket]:
    """Take all that are there now; other threads may add some at any time."""
    return [tickets.popleft() for _ in range(len(tickets))]
