"""Components that are told of requests: when one begins, what it says and when it is over.

It knows slots and whose they are; what components make of what they hear is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch

from eagle.decoding.batch import Batch, Outcome
from eagle.decoding.requests import Request
from eagle.plugin import Breach, OfferingHead, RequestAware, Role
from eagle.spec import Resolved

__all__ = ["Listeners"]


class Listeners:
    """Tells components of requests, on the host and outside of what is captured.

    Args:
        resolved: the components.

    Attributes:
        refused: by slot, what kept a component from taking in its request; said when its turn to be
            read comes.
    """

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        parts = resolved.components.values()
        self._aware = [part for part in parts if isinstance(part, RequestAware)]
        self._offering = resolved.head if isinstance(resolved.head, OfferingHead) else None
        self._told: dict[int, Request] = {}  # by slot, what they know to have begun
        self.refused: dict[int, Exception] = {}

    def __bool__(self) -> bool:
        return bool(self._aware)

    def begin(self, slot: int, request: Request) -> None:
        """Tell that a slot is given to a request; a component that fails costs no others theirs."""
        if not self._aware:
            return
        self._told[slot] = request
        try:
            with torch.inference_mode(), self._resolved.blaming():
                for part in self._aware:
                    part.begin_request(slot, request.prompt)
        except Exception as error:
            self.refused[slot] = error

    def end(self, slot: int) -> None:
        """Tell that the request of a slot is over."""
        self.refused.pop(slot, None)
        request = self._told.pop(slot, None)
        if request is not None:
            with torch.inference_mode(), self._resolved.blaming():
                for part in self._aware:
                    part.end_request(slot, [*request.prompt, *request.tokens])

    def follow(self, batch: Batch, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Tell a head that offers candidates what was read back, before the next cycle begins.

        Args:
            batch: whose the slots are.
            outcomes: slots, and what a pass did in them.
        """
        if self._offering is None:
            return
        with self._resolved.blaming():
            for slot, (count, bad, *tokens) in outcomes:
                if count and not bad and batch.requests[slot] is not None:
                    self._offering.follow(slot, tokens[:count])

    def offer(self, width: int) -> Sequence[int]:
        """Return for how many levels a head offers candidates; nothing where it says nothing of it.

        Args:
            width: slots that the next cycle runs over.

        Raises:
            Breach: it speaks of more or fewer slots.
        """
        if self._offering is None:
            return ()
        offered = self._offering.offer(width)
        if len(offered) != width:
            raise Breach(
                Role.HEAD,
                f"offer({width}) returned {len(offered)} numbers, not one for each slot",
            )
        return offered

    def give_up(self) -> None:
        """Tell that all requests are over."""
        for slot in list(self._told):
            with suppress(Exception):  # what they raise now says less than what is given up for
                self.end(slot)
        self.refused.clear()
