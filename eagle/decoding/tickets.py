"""Requests on their way through a loop, and what it tells others of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eagle.decoding.requests import Event, Request

__all__ = ["Leader", "Sink", "Ticket"]


class Sink(Protocol):
    """Where what came of a request goes, in whichever thread drives the loop."""

    def put(self, ticket: Ticket, event: Event) -> None:
        """Take in what a cycle gave."""

    def fail(self, ticket: Ticket, error: Exception) -> None:
        """Take in what kept the request from being answered; nothing more comes of it."""


@dataclass(eq=False)
class Ticket:
    """A request on its way through the loop.

    Attributes:
        request: what is asked.
        sink: where its events go.
        priority: higher ones are seated first, and of equals who came first.
        over: it was answered, failed or was cancelled: nothing more comes of it.
        number: by which the processes that follow this one know it; 0 where none was told of it.
    """

    request: Request
    sink: Sink
    priority: int = 0
    over: bool = False
    number: int = 0


class Leader(Protocol):
    """What tells other processes, which do the same passes, what this one goes by."""

    def tell(self, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]) -> None:
        """Say who came and who was given up before the pass that comes now."""

    def warm_up(self) -> None:
        """Say that what requests are going to need is compiled and captured now."""

    def end(self) -> None:
        """Say that no pass comes any more."""

    def abandon(self, why: str) -> None:
        """Say that this process has broken, and does nothing more with the others."""
