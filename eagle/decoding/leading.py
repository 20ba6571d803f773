"""Process 0 takes requests, and the others that hold its target do every pass that it does.

Before a pass it tells who came and who was given up; all else follows from that. It knows requests
and what tells them apart; how orders travel is `eagle.target`'s, and what a pass does the loop's.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from eagle.decoding.decoder import Decoder
from eagle.decoding.loop import Ticket
from eagle.decoding.packing import unpacked
from eagle.decoding.requests import Event
from eagle.plugin import SamplingParams
from eagle.target import Together

__all__ = ["Follower", "Lead"]

_END = b"end"


@dataclass(frozen=True)
class _Asked:
    """A request as others make it anew: what its tokens depend on, and nothing else."""

    number: int
    index: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    priority: int
    processors: bytes


class Lead:
    """What the first process tells the others; see `eagle.decoding.loop.Leader`.

    Args:
        together: the processes.
    """

    def __init__(self, together: Together) -> None:
        self._together, self._numbers = together, count(1)

    def tell(self, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]) -> None:
        """Say who came and who was given up before the pass that comes now."""
        asked = [self._asked(ticket) for ticket in arrived]
        given_up = [ticket.number for ticket in cancelled if ticket.number]
        # Nothing, which is what there is to tell of most passes, travels fastest.
        self._together.relay(pickle.dumps((asked, given_up)) if asked or given_up else b"")

    def end(self) -> None:
        """Say that no pass comes any more."""
        self._together.led = False
        self._together.relay(_END)

    def abandon(self, why: str) -> None:
        """Do nothing more with the others, who end where they wait for this process."""
        self._together.abandon(why)

    def _asked(self, ticket: Ticket) -> _Asked:
        ticket.number = next(self._numbers)
        one = ticket.request
        return _Asked(
            ticket.number, one.index, one.prompt, one.params, one.seed, ticket.priority, one.packed
        )


class Follower:
    """Does the passes that the first process does, until that says that there are no more.

    Args:
        decoder: what decodes.
        together: the processes.
    """

    def __init__(self, decoder: Decoder, together: Together) -> None:
        self._decoder, self._together = decoder, together
        self._tickets: dict[int, Ticket] = {}

    def run(self) -> None:
        """Follow to the end.

        Raises:
            TargetError: a process is lost.
        """
        while (order := self._together.relay()) != _END:
            arrived, cancelled = self._understood(order) if order else ([], [])
            self._decoder.loop.follow(arrived, cancelled)
            self._tickets = {n: one for n, one in self._tickets.items() if not one.over}

    def _understood(self, order: bytes) -> tuple[list[Ticket], list[Ticket]]:
        """Return who came and who was given up."""
        asked, given_up = pickle.loads(order)
        arrived = [self._ticket(one) for one in asked]
        return arrived, [self._tickets[n] for n in given_up if n in self._tickets]

    def _ticket(self, asked: _Asked) -> Ticket:
        given = unpacked(asked.processors, self._decoder.target.tokenizer)
        request = self._decoder.again(asked.prompt, asked.params, given, asked.index, asked.seed)
        self._tickets[asked.number] = Ticket(request, _Nobody(), asked.priority)
        return self._tickets[asked.number]


class _Nobody:
    """Where nobody waits: whoever asked is in another process."""

    def put(self, ticket: Ticket, event: Event) -> None:
        pass

    def fail(self, ticket: Ticket, error: Exception) -> None:
        pass
