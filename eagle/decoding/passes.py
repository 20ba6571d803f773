"""Passes on their way: sends cycles and pieces of prompts to the device; waits for none of them.

It knows slots and whose they are; who is given what came of a pass, and when, is the loop's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eagle.cycle import Cycle, Piece, Processing, Report, Slots
from eagle.decoding.listeners import Listeners
from eagle.decoding.reading import apart
from eagle.decoding.requests import Request
from eagle.decoding.seats import Seats
from eagle.errors import RequestError
from eagle.plugin import Breach, Role, Sampling, VaryingTree
from eagle.runtime import Arrival, Runtime
from eagle.spec import Resolved

__all__ = ["Passes", "Reading", "Running"]

_UNREAD = torch.zeros(1, dtype=torch.float64)  # of a prompt that goes on, no token is chosen


@dataclass(frozen=True)
class Running:
    """A cycle on its way.

    Attributes:
        requests: whose the slots were when it was sent; None where one idles in it.
        slots: what it runs over.
        outcome: what comes of it (see `eagle.cycle.Slots.outcome`).
        processing: the logits processors that it asks.
        reports: whether it says what the target gives its tokens.
        candidates: how many its tree has.
    """

    requests: list[Request | None]
    slots: Slots
    outcome: Arrival
    processing: Processing | None
    reports: bool
    candidates: int


@dataclass(frozen=True)
class Reading:
    """A pass over prompts on its way.

    Attributes:
        groups: slots with their requests whose prompts end in it, and what kept them from being
            read; those who were to be read together are kept together.
        outcome: the first tokens, by slot; None where nobody waits for any.
        reports: whether it says what the target gives these tokens.
        seconds: what sending it took.
    """

    groups: list[tuple[list[tuple[int, Request]], Exception | None]]
    outcome: Arrival | None
    reports: bool
    seconds: float


class Passes:
    """What sends passes to the device.

    Args:
        cycle: what is run.
        runtime: what runs it.
        resolved: the spec's components, for whom to blame.
        seats: whose the slots are.
        listeners: the components that are told of requests.

    Attributes:
        flow: whether passes may be sent behind one whose outcome is not known yet.
        cycles: cycles that were started.
    """

    def __init__(
        self,
        cycle: Cycle,
        runtime: Runtime,
        resolved: Resolved,
        seats: Seats,
        listeners: Listeners,
    ) -> None:
        self._cycle, self._runtime, self._resolved = cycle, runtime, resolved
        self._seats, self._listeners = seats, listeners
        # Components that are told of requests know those of now, not of a cycle that goes on.
        self.flow = not listeners
        self.cycles = 0
        self._sampling: Sampling | None = None
        self._part: Slots | None = None  # what the sampling parameters on the device are of

    @property
    def report(self) -> Report:
        """What the target gave the tokens of the latest pass that was to say so."""
        assert self._seats.slots is not None
        return self._seats.slots.report

    def reseat(self) -> None:
        """Take note that slots have come to be others'."""
        self._sampling = None

    def behind(self) -> bool:
        """Whether all prompts that wait to be read may be read behind a cycle that is on its way.

        Another cycle then begins before their first tokens are known. So nobody may be done with
        that token, and nothing on the host may be asked for it or about it.
        """
        reader = self._seats.reader
        return not any(
            one.processors or one.params.logprobs is not None or one.limit < 2
            for one in map(reader.request, reader.slots)
        )

    def read(self) -> Reading:
        """Start a pass of bounded size over prompts that wait to be read.

        Or more passes, for those with logits processors. What keeps one from being read costs no
        others.
        """
        seats, refused, began = self._seats, self._listeners.refused, time.perf_counter()
        pieces = seats.reader.take()
        slots = seats.slots
        assert slots is not None
        groups: list[tuple[list[tuple[int, Request]], Exception | None]] = []
        read = [one for one in pieces if one.slot not in refused]
        # What is not read together is not lost together.
        for group in apart(read) if self._cycle.packs else [[one] for one in read]:
            ended = [one for one in group if one.last]
            for one in ended:
                seats.batch.put(one.slot, one.request)
            try:
                self._send(slots, group)
                for one in ended:
                    seats.begin(one.slot, one.request)
            except Exception as error:
                # Whether other processes failed too is not known; to go on would wait for them.
                # A request's own mistake is one in all of them.
                together = self._cycle.target.together
                if together is not None and not isinstance(error, RequestError):
                    raise
                groups.append(([(one.slot, one.request) for one in group], error))
            else:
                groups.append(([(one.slot, one.request) for one in ended], None))
        for one in pieces:
            if one.slot in refused:
                seats.batch.put(one.slot, one.request)
                groups.append(([(one.slot, one.request)], refused[one.slot]))
        self.reseat()
        return Reading(
            groups,
            Arrival(slots.outcome) if any(own for own, _ in groups) else None,
            any(one.reports for one in read),
            time.perf_counter() - began,
        )

    def _send(self, slots: Slots, pieces: Sequence[Piece[Request]]) -> None:
        with torch.inference_mode(), self._resolved.blaming():
            uniforms = torch.stack(
                [one.request.uniforms(1) if one.last else _UNREAD for one in pieces]
            )
            self._runtime.read(
                slots,
                pieces,
                uniforms.to(self._cycle.target.device, non_blocking=True),
                self._seats.batch.processing() if pieces[0].request.processors else None,
            )

    def ahead(self, running: Running) -> Running | None:
        """Start the cycle behind one of which nothing is known yet, where that may be.

        The device goes from one to the other without waiting for the host. For who ends in the
        first one by what it says, the second is for nothing, and its outcome is not looked at.

        Returns:
            None where it may not: what comes of the first has to be known on the host, or it ends
            all requests that there are.
        """
        batch, reader = self._seats.batch, self._seats.reader
        asked = running.processing or running.reports or batch.asks or batch.reports
        if asked or not (self.flow and self._runtime.graph) or (reader and not self.behind()):
            return None
        over = batch.over
        alone = len(over) == len(batch.requests) - len(batch.free)
        return None if alone else self.cycle(over)

    def cycle(self, ending: Sequence[int] = ()) -> Running:
        """Start one cycle for all slots; what the next one draws is sent behind it.

        Args:
            ending: slots that idle in it, though their requests have not been told yet.
        """
        seats = self._seats
        for slot in ending:
            seats.still(slot)
        self.cycles += 1
        batch, part = seats.batch, seats.first()
        width = part.root.shape[0]
        if self._sampling is None or part is not self._part:
            self._sampling, self._part = part.sampling.become(batch.params(width)), part
        requests = [None if n in ending else one for n, one in enumerate(batch.requests[:width])]
        if not self._sampling.greedy:
            seats.feed.fill(requests)
        # A cycle that started ahead may have committed what has not been delivered yet.
        committed = batch.longest + self._cycle.depth + 1
        processing, reports = batch.processing(), batch.reports
        with torch.inference_mode(), self._resolved.blaming():
            tree = self._choose(width)
            self._runtime.run(part, self._sampling, committed, processing, tree, reports=reports)
            if not self._sampling.greedy:
                seats.feed.refill(requests)
        builder = self._cycle.trees[tree]
        # One that is not captured may leave out nodes; a captured cycle is not run again to tell.
        nodes = builder.shape.nodes if builder.capturable else self._cycle.nodes
        return Running(requests, part, Arrival(part.outcome), processing, reports, nodes - 1)

    def _choose(self, width: int) -> int:
        """Return which tree the next cycle drafts, by what has been read back already."""
        tree, offered = self._resolved.tree, self._listeners.offer(width)
        if not isinstance(tree, VaryingTree):
            return 0
        chosen = tree.choose(self._seats.batch.seen(width, offered, slots=self._seats.limit))
        if not isinstance(chosen, int) or not 0 <= chosen < len(self._cycle.trees):
            raise Breach(
                Role.TREE,
                f"choose() returned {chosen!r}, which is none of its {len(self._cycle.trees)} "
                "alternatives",
            )
        return chosen
