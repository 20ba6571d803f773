"""THE loop: requests come in, prompts are read, cycles run, tokens go out; it has no thread.

Whoever waits for an answer drives it, one pass at a time: the thread that called a decoder, or an
engine's. What comes of a pass goes to everybody's own sink, so they may be many. It knows requests
and cycles; what a cycle's components do is theirs (see `eagle.cycle`).

What a pass does follows from what was heard at its beginning and what came of those before: not
from the time, nor from what other threads do meanwhile. So processes that hold a target together
and hear the same do the same (see `eagle.decoding.leading`).
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch

from eagle.cycle import Cycle, Piece, Processing
from eagle.decoding.batch import Outcome, failed_last
from eagle.decoding.logprobs import Logprobs
from eagle.decoding.reading import apart
from eagle.decoding.requests import Event, Request
from eagle.decoding.seats import Seats
from eagle.decoding.stranger import Stranger
from eagle.errors import EagleError, RequestError
from eagle.plugin import Breach, OfferingHead, RequestAware, Role, Sampling, VaryingTree
from eagle.runtime import Runtime
from eagle.spec import Resolved
from eagle.target import News

__all__ = ["Leader", "Loop", "Sink", "Ticket"]


_UNREAD = torch.zeros(1, dtype=torch.float64)  # of a prompt that goes on, no token is chosen


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

    def end(self) -> None:
        """Say that no pass comes any more."""

    def abandon(self, why: str) -> None:
        """Say that this process has broken, and does nothing more with the others."""


class Loop:
    """Requests that wait, and those that have a slot.

    Any thread may `submit` and `cancel` at any time. All else is done with the target's turn, which
    one thread has at a time, in the order in which they asked for it.

    Args:
        cycle: what is run.
        runtime: what runs it.
        resolved: the spec's components, for whom to blame.
        limit: requests decoded at once, at most.
        capacity: tokens of a text, at most.
        sized: see `eagle.decoding.seats.Seats`.

    Attributes:
        seats: slots and blocks, and who has them.
        lead: is told what every pass goes by, where other processes follow this one.
        cycles: cycles that were started.
        reading: seconds in which prompts were read; where that goes on between cycles, without
            what the device does of it while the host goes on.
        tokens: tokens that were given.
        verified: verifications, of all requests.
        committed: tokens that these gave.
        accepted: by draft position, in how many verifications its token was accepted.
        prompt_tokens: tokens of the prompts that were read, those found in blocks included.
    """

    def __init__(
        self,
        cycle: Cycle,
        runtime: Runtime,
        resolved: Resolved,
        *,
        limit: int,
        capacity: int,
        sized: Callable[[int], None] | None = None,
    ) -> None:
        self._cycle, self._runtime, self._resolved = cycle, runtime, resolved
        self.seats = Seats(cycle, runtime, limit, capacity, sized)
        self.lead: Leader | None = None
        self._arrived: deque[Ticket] = deque()
        self._cancelled: deque[Ticket] = deque()
        self._waiting: list[tuple[int, int, Ticket]] = []  # a heap
        self._numbers = count()
        self._tickets: dict[int, Ticket] = {}  # of those with a slot, by their request's id
        parts = resolved.components.values()
        self._aware = [part for part in parts if isinstance(part, RequestAware)]
        self._offering = resolved.head if isinstance(resolved.head, OfferingHead) else None
        self._stranger = Stranger(resolved)
        self._refused: dict[int, Exception] = {}  # by slot, whose beginning failed
        self._told: dict[int, Request] = {}  # by slot, what components know to have begun
        self._sampling: Sampling | None = None
        self._processing: Processing | None = None
        self._width = 0  # slots that the sampling parameters on the device are of
        self._reports = False  # whether the latest cycle says what the target gave its tokens
        self._ahead = False  # whether the next cycle is under way already
        self._read_last = False
        self._together = cycle.target.together
        self._news = News(came=False, left=False)  # since the pass that is under way began
        self.cycles = self.tokens = self.verified = self.committed = 0
        self.reading = 0.0
        self.prompt_tokens = 0
        self.accepted = [0] * cycle.depth

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._arrived or self._waiting or self.seats or self._cancelled)

    @property
    def waiting(self) -> int:
        """How many requests have no slot yet."""
        return len(self._arrived) + len(self._waiting)

    def submit(self, tickets: Iterable[Ticket]) -> None:
        """Take in requests, which may be answered at once where the loop is being driven."""
        self._arrived.extend(tickets)

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Let nothing more come of requests; the pass that is under way is their last.

        It waits for nobody: where the loop is being driven, whoever does that makes their slots
        and blocks free. Where other processes follow, so does the next pass.
        """
        for ticket in tickets:
            if not ticket.over:
                ticket.over = True
                self._cancelled.append(ticket)
        if self._cancelled and self.lead is None:
            with self._cycle.target.turn.tried("cancelling") as had:
                if had:
                    self._sweep(_drained(self._cancelled))

    def let_go(self) -> None:
        """Forget what was allocated for those who were seated; nobody may be."""
        self._apart("forgetting")
        self.seats.let_go()

    def resize(self, slots: int) -> None:
        """Let so many requests be decoded at once from now on; none may be under way."""
        with self._cycle.target.turn.held("decoding", within=False):
            self.let_go()
            self.seats.limit = slots

    def forget(self) -> None:
        """Forget the texts that were decoded, which those that begin alike would go on from."""
        self._apart("forgetting")
        with self._cycle.target.turn.held("decoding", within=False):
            self.seats.blocks.forget()

    def _apart(self, what: str) -> None:
        if self._together is not None:
            self._together.apart(what)

    def enter(self) -> None:
        """Let this thread, which is going to drive, launch kernels on the target's device."""
        device = self._cycle.target.device
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)

    def drive(self, until: Callable[[], bool]) -> None:
        """Do one pass, unless others have done what is waited for by the time it can be done.

        Raises:
            RequestError: it was asked for from within a pass of the same target.
        """
        with self._cycle.target.turn.held("decoding", within=False):
            if not until():
                self._turn()

    def follow(self, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]) -> None:
        """Do the pass that the process does which leads this one, by what it goes by.

        Raises:
            RequestError: see `drive`.
        """
        with self._cycle.target.turn.held("decoding", within=False):
            self.submit(arrived)
            self.cancel(cancelled)
            self._turn()

    def retire(self) -> None:
        """Do what is left to do, and let the processes go that follow this one."""
        with self._cycle.target.turn.held("decoding", within=False):
            while self.busy:
                self._turn()
            lead, self.lead = self.lead, None
            if lead is not None:
                lead.end()

    def fail(self, error: Exception) -> None:
        """Let every request fail that there is."""
        with self._cycle.target.turn.held("decoding"):
            self._give_up(error)
            for ticket in [*self._arrived, *(entry[2] for entry in self._waiting)]:
                self._end(ticket, error)
            self._arrived.clear()
            self._waiting.clear()

    # --- one turn ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do one pass: read on in prompts, or run a cycle; both in turn where there are both."""
        seats = self.seats
        try:
            self._sweep(self._hear())
            if not self._ahead:  # its outcome is of those who had the slots when it began
                self._admit()
                if seats.reader and not (self._read_last and seats.batch):
                    self._read_last = True
                    self._read(seats.reader.take())
                    return
            self._read_last = False
            if seats.batch:
                self._run()
            else:
                self._ahead = False
        except Exception as error:
            told = error if self._together is None else self._together.failed(error)
            self._give_up(told)
            if self._together is not None and self._together.gone is not None:
                self.fail(told)
                if told is error:
                    raise
                raise told from error
        except BaseException:  # Ctrl-C, in the middle of a pass
            self._give_up(EagleError("the thread that decoded this with others was interrupted"))
            if self._together is not None:
                self._together.abandon("interrupted")
            raise

    def _hear(self) -> list[Ticket]:
        """Take in who came, and return who was given up; until the next pass, nobody else is."""
        if self._together is not None:
            self._together.still()
        cancelled = _drained(self._cancelled)
        arrived = [ticket for ticket in _drained(self._arrived) if not ticket.over]
        for ticket in arrived:
            heapq.heappush(self._waiting, (-ticket.priority, next(self._numbers), ticket))
        if self.lead is not None:
            self.lead.tell(arrived, cancelled)
        return cancelled

    def _sweep(self, cancelled: Iterable[Ticket]) -> None:
        """Give up the places of those who were cancelled."""
        gone = set()
        for ticket in cancelled:
            if self._tickets.pop(id(ticket.request), None) is None:
                gone.add(ticket)
            else:
                self._leave(self._slot(ticket.request))
                self._sampling = None
        if gone:
            self._waiting = [entry for entry in self._waiting if entry[2] not in gone]
            heapq.heapify(self._waiting)

    def _slot(self, request: Request) -> int:
        """Return the slot of a request that has one."""
        seats = self.seats
        for slot, other in enumerate(seats.batch.requests):
            if other is request:
                return slot
        return next(slot for slot in seats.reader.slots if seats.reader.request(slot) is request)

    def _admit(self) -> None:
        """Give those who wait slots and blocks, in order, as far as there are any.

        Nobody overtakes who came first, so that a long text is not kept waiting by short ones.
        """
        while self._waiting:
            ticket = self._waiting[0][2]
            try:
                if not self._seat(ticket):
                    break
            except Exception as error:  # there is less memory than there seemed to be
                heapq.heappop(self._waiting)
                self._end(ticket, error)
                raise
            heapq.heappop(self._waiting)
        # What components remember of slots stays where it is.
        if not self._aware and self.seats.close_up():
            self._sampling = None  # is of slots, which others have now

    def _seat(self, ticket: Ticket) -> bool:
        """Give one of those who wait a slot; False where it has to wait for others to end."""
        idle = not self.seats
        if idle:
            with self._resolved.blaming():
                self.seats.prepare([entry[2].request for entry in self._waiting])
        if self.seats.take(ticket.request):
            self._tickets[id(ticket.request)] = ticket
            self._begin(ticket)
            return True
        if idle:
            raise EagleError("there is no room for a text for which there should be")
        return False

    def _begin(self, ticket: Ticket) -> None:
        """Tell components that a slot is given to a request; one that fails costs no others."""
        if not self._aware:
            return
        slot = self._slot(ticket.request)
        self._told[slot] = ticket.request
        try:
            with torch.inference_mode(), self._resolved.blaming():
                for part in self._aware:
                    part.begin_request(slot, ticket.request.prompt)
        except Exception as error:
            self._refused[slot] = error  # said when its turn to be read comes

    def _leave(self, slot: int, *, keep: bool = True, spoilt: bool = False) -> None:
        """Let a slot idle, and tell components that its request is over."""
        self.seats.leave(slot, keep=keep, spoilt=spoilt)
        self._refused.pop(slot, None)
        self._tell_end(slot)

    def _tell_end(self, slot: int) -> None:
        request = self._told.pop(slot, None)
        if request is not None:
            with torch.inference_mode(), self._resolved.blaming():
                for part in self._aware:
                    part.end_request(slot, [*request.prompt, *request.tokens])

    def _follow(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Tell a head that offers candidates what was read back, before the next cycle begins."""
        if self._offering is None:
            return
        with self._resolved.blaming():
            for slot, (count, bad, *tokens) in outcomes:
                if count and not bad and self.seats.batch.requests[slot] is not None:
                    self._offering.follow(slot, tokens[:count])

    def _choose(self) -> int:
        """Return which tree the next cycle drafts, by what has been read back already."""
        tree = self._resolved.tree
        offered = self._offer() if self._offering is not None else ()
        if not isinstance(tree, VaryingTree):
            return 0
        chosen = tree.choose(self.seats.batch.seen(offered))
        if not isinstance(chosen, int) or not 0 <= chosen < len(self._cycle.trees):
            raise Breach(
                Role.TREE,
                f"choose() returned {chosen!r}, which is none of its {len(self._cycle.trees)} "
                "alternatives",
            )
        return chosen

    def _offer(self) -> Sequence[int]:
        assert self._offering is not None
        offered = self._offering.offer(self._width)
        if len(offered) != self._width:
            raise Breach(
                Role.HEAD,
                f"offer({self._width}) returned {len(offered)} numbers, not one for each slot",
            )
        return offered

    def _read(self, pieces: list[Piece[Request]]) -> None:
        """Read pieces of prompts, and deliver the first tokens of those that end.

        One pass of bounded size, or more for those with logits processors; nothing in it waits for
        the device. What keeps one of these from being read costs no others.
        """
        seats, began = self.seats, time.perf_counter()
        slots = seats.slots
        assert slots is not None
        groups: list[tuple[list[int], Exception | None]] = []
        refused = [one for one in pieces if one.slot in self._refused]
        pieces = [one for one in pieces if one.slot not in self._refused]
        # What is not read together is not lost together.
        for group in apart(pieces) if self._cycle.packs else [[one] for one in pieces]:
            ended = [one for one in group if one.last]
            for one in ended:
                seats.batch.put(one.slot, one.request)
            try:
                with torch.inference_mode(), self._resolved.blaming():
                    uniforms = torch.stack(
                        [one.request.uniforms(1) if one.last else _UNREAD for one in group]
                    )
                    self._runtime.read(
                        slots,
                        group,
                        uniforms.to(self._cycle.target.device, non_blocking=True),
                        seats.batch.processing() if group[0].request.processors else None,
                    )
                for one in ended:
                    seats.begin(one.slot, one.request)
            except Exception as error:
                # Whether other processes failed too is not known; to go on would wait for them.
                # A request's own mistake is one in all of them.
                if self._together is not None and not isinstance(error, RequestError):
                    raise
                groups.append(([one.slot for one in group], error))
            else:
                groups.append(([one.slot for one in ended], None))
        for one in refused:
            seats.batch.put(one.slot, one.request)
            groups.append(([one.slot], self._refused[one.slot]))
        self._sampling = None
        outcomes = slots.outcome.tolist() if any(own for own, _ in groups) else []
        self._compare(outcomes)
        found = Logprobs(slots.report) if any(one.reports for one in pieces) else None
        self.reading += time.perf_counter() - began
        for own, failure in groups:
            if failure is None:
                self._follow((slot, outcomes[slot]) for slot in own)
            for slot, outcome in failed_last((slot, outcomes[slot]) for slot in own):
                self._deliver(slot, outcome, failure, verified=False, logprobs=found)

    def _run(self) -> None:
        """Run a cycle and deliver what came of it; perhaps start the next one before that."""
        batch = self.seats.batch
        if not self._ahead:
            self._advance()
        outcomes = self._part.outcome.tolist()
        self._compare(outcomes)
        found = Logprobs(self._part.report) if self._reports else None
        batch.note(outcomes)
        self._stranger.note(batch.seen().committed)
        failures = self._processing.failures if self._processing else {}
        self._follow(one for one in enumerate(outcomes) if one[0] not in failures)
        self._ahead = (
            self._runtime.graph
            and not self.seats.reader
            and not self._news.left
            and batch.goes_on(outcomes, waiting=self._news.came or bool(self._waiting))
        )
        if self._ahead:
            self._advance()
        for slot, outcome in failed_last(enumerate(outcomes)):
            if slot not in failures and batch.requests[slot] is not None:
                self._deliver(slot, outcome, None, logprobs=found)
        for slot, failure in failures.items():
            self._deliver(slot, outcomes[slot], failure)

    def _compare(self, outcomes: list[Outcome]) -> None:
        """Hold outcomes against those of the processes that hold the target with this one.

        Who is seated is compared, too: a process that goes on with others waits for ever. And look
        whether somebody came or left meanwhile, which all go by if one of them sees it.
        """
        self._news = News(came=bool(self._arrived), left=bool(self._cancelled))
        if self._together is not None:
            seats = self.seats
            state = (seats.active, seats.blocks.free, len(self._waiting))
            self._news = self._together.same((outcomes, state), self._news)

    def _advance(self) -> None:
        """Start one cycle for all slots; what the next one draws is sent behind it."""
        seats = self.seats
        batch, part = seats.batch, seats.first()
        width = part.root.shape[0]
        if self._sampling is None or width != self._width:
            self._sampling, self._width = part.sampling.become(batch.params(width)), width
        requests = batch.requests[:width]
        if not self._sampling.greedy:
            seats.feed.fill(requests)
        # A cycle that started ahead may have committed what has not been delivered yet.
        committed = batch.longest + self._cycle.depth + 1
        self._part, self._processing = part, batch.processing()
        self._reports = batch.reports
        with torch.inference_mode(), self._resolved.blaming():
            tree = self._choose()
            self.cycles += 1
            self._runtime.run(
                part,
                self._sampling,
                committed,
                self._processing,
                tree,
                reports=self._reports,
            )
            if not self._sampling.greedy:
                seats.feed.refill(requests)

    def _deliver(
        self,
        slot: int,
        outcome: Outcome,
        failure: Exception | None,
        *,
        verified: bool = True,
        logprobs: Logprobs | None = None,
    ) -> None:
        """Give a slot's new tokens to its request, and let the slot idle if that ends it."""
        seats = self.seats
        request = seats.batch.requests[slot] or seats.reader.request(slot)
        ticket = self._tickets[id(request)]
        event = None
        try:
            if failure is None:
                event = seats.batch.deliver(slot, outcome, verified=verified, logprobs=logprobs)
        except Exception as error:
            failure = error
        if failure is not None:
            del self._tickets[id(request)]
            self._sampling = None
            self._end(ticket, failure)
            # What processors raise leaves the target's and the head's rows what they should be.
            self._leave(slot, keep=False, spoilt=not isinstance(failure, RequestError))
        elif event is not None:
            self.tokens += len(event.tokens)
            if verified:
                self.verified, self.committed = (
                    self.verified + 1,
                    self.committed + len(event.tokens),
                )
                for place in range(event.drafted):
                    self.accepted[place] += 1
            else:
                self.prompt_tokens += len(request.prompt)
            if event.finish_reason:
                del self._tickets[id(request)]
                self._sampling = None
                self._leave(slot)
            # Who was cancelled in this pass keeps the slot until the next, in every process.
            told = not ticket.over
            ticket.over = ticket.over or event.result is not None
            if told:
                ticket.sink.put(ticket, event)

    def _end(self, ticket: Ticket, error: Exception) -> None:
        if not ticket.over:
            ticket.over = True
            ticket.sink.fail(ticket, error)

    def _give_up(self, error: Exception) -> None:
        """Let all fail who are seated: what is in their slots cannot be known."""
        self.seats.let_go()
        self._refused = {}
        for slot in list(self._told):
            with suppress(Exception):  # what they raise now says less than what is given up for
                self._tell_end(slot)
        self._ahead, self._sampling = False, None
        tickets, self._tickets = list(self._tickets.values()), {}
        for ticket in tickets:
            self._end(ticket, error)


def _drained(tickets: deque[Ticket]) -> list[Ticket]:
    """Take all that are there now; other threads may add some at any time."""
    return [tickets.popleft() for _ in range(len(tickets))]
