"""Requests of one call, through a loop that many share: whoever waits drives it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from eagle.decoding.loop import Loop
from eagle.decoding.requests import Event, Request
from eagle.decoding.tickets import Ticket
from eagle.errors import again

__all__ = ["answers"]


def answers(loop: Loop, more: Callable[[int], Sequence[Request]]) -> Iterator[Event]:
    """Have requests answered, driving the loop as long as nothing has come of them.

    Args:
        loop: what they go through, with those of other callers.
        more: is asked before each pass, with the number of requests that are under way. Once that
            is none and nothing comes, that was all.
    """
    inbox, left = _Inbox(), 0
    try:
        while True:
            if requests := more(left):
                tickets = [Ticket(request, inbox) for request in requests]
                inbox.open.update(dict.fromkeys(tickets))
                left += len(tickets)
                loop.submit(tickets)
            if not left:
                return
            while not inbox.found:
                loop.drive(inbox.filled)
            while inbox.found:
                found = inbox.found.popleft()
                if isinstance(found, Exception):
                    raise found
                left -= found.result is not None
                yield found
    finally:
        if left:
            loop.cancel(list(inbox.open))


class _Inbox:
    """What came of the requests of one call, until the caller asks for it, and which are open."""

    def __init__(self) -> None:
        self.found: deque[Event | Exception] = deque()
        self.open: dict[Ticket, None] = {}  # in the order in which they came

    def filled(self) -> bool:
        return bool(self.found)

    def put(self, ticket: Ticket, event: Event) -> None:
        if event.result is not None:
            self.open.pop(ticket, None)
        self.found.append(event)

    def fail(self, ticket: Ticket, error: Exception) -> None:
        self.open.pop(ticket, None)
        self.found.append(again(error))
