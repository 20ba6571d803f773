"""THE loop: requests come in, prompts are read, cycles run, tokens go out; it has no thread.

Whoever waits for an answer drives it, one pass at a time: the thread that called a decoder, or an
engine's. What comes of a pass goes to everybody's own sink, so they may be many. It knows requests
and cycles; what a cycle's components do is theirs (see `eagle.cycle`).

What a pass does follows from what was heard at its beginning and what came of those before: not
from the time, nor from what other threads do meanwhile. So processes that hold a target together
and hear the same do the same (see `eagle.decoding.leading`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from eagle.cycle import Cycle
from eagle.decoding.batch import Outcome, failed_last
from eagle.decoding.line import Line, drained
from eagle.decoding.listeners import Listeners
from eagle.decoding.logprobs import Logprobs
from eagle.decoding.passes import Passes, Reading, Running
from eagle.decoding.requests import Request
from eagle.decoding.rousing import roused_together
from eagle.decoding.seats import Seats
from eagle.decoding.stranger import Stranger
from eagle.decoding.tally import Tally
from eagle.decoding.telling import telling
from eagle.decoding.tickets import Leader, Ticket
from eagle.errors import EagleError, RequestError
from eagle.runtime import Runtime, warm_up
from eagle.spec import Resolved
from eagle.target import News

__all__ = ["Loop"]


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
        tally: what was given so far, in numbers.
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
        self.tally = Tally(accepted=[0] * cycle.depth)
        self._line = Line()
        self._cancelled: deque[Ticket] = deque()
        self._tickets: dict[int, Ticket] = {}  # of those with a slot, by their request's id
        self._listeners = Listeners(resolved)
        self._stranger = Stranger(resolved)
        self._passes = Passes(cycle, runtime, resolved, self.seats, self._listeners)
        self._running: Running | None = None  # the next cycle, where it is under way already
        self._behind: list[Reading] = []  # and what was sent behind the one before it
        self._read_last = False
        self._together = cycle.target.together
        self._news = News()  # since the pass that is under way began

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self.waiting or self.seats or self._cancelled)

    @property
    def cycles(self) -> int:
        """How many cycles were started."""
        return self._passes.cycles

    @property
    def waiting(self) -> int:
        """How many requests have no slot yet."""
        return self._line.unheard + len(self._line)

    def submit(self, tickets: Iterable[Ticket]) -> None:
        """Take in requests, which may be answered at once where the loop is being driven."""
        self._line.add(tickets)

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
                    self._sweep(drained(self._cancelled))

    def let_go(self) -> None:
        """Forget what was allocated for those who were seated; nobody may be."""
        self._apart("forgetting")
        self._forget_passes()
        self.seats.let_go()

    def warm_up(self) -> bool:
        """Compile and capture what requests are going to need, so that none waits for it.

        Returns:
            Whether there was anything to do: not where cycles are not captured, nor while somebody
            is being answered; and where several processes hold the target, not unless this one
            leads them.

        Raises:
            PartedError: another process could not do it.
        """
        with self._cycle.target.turn.held("decoding", within=False):
            alone = self._together is not None and self.lead is None
            if not self._runtime.graph or alone or self.seats:
                return False
            if self.lead is not None:
                self.lead.warm_up()
            self._warm_up()
            return True

    def follow_warm_up(self) -> None:
        """Compile and capture what the process does which leads this one; see `warm_up`."""
        with self._cycle.target.turn.held("decoding", within=False):
            self._warm_up()

    def _warm_up(self) -> None:
        self.enter()
        with telling(self._together), self._resolved.blaming():
            self.seats.prepare(())
            assert self.seats.slots is not None
            warm_up(self._runtime, self.seats.slots, self.seats.limit)
        if self._together is not None:
            self._together.same("warm", News())
        self._passes.reseat()

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
            for ticket in self._line.clear():
                self._end(ticket, error)

    # --- one turn ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do one pass; where it fails, all fail who are seated, and nobody else."""
        try:
            with telling(self._together, ahead=lambda: self._passes.flow and self._runtime.graph):
                self._pass()
        except Exception as error:
            self._give_up(error)
            if self._together is not None and self._together.gone is not None:
                self.fail(error)
                raise
        except BaseException:
            self._give_up(EagleError("the thread that decoded this with others was interrupted"))
            raise

    def _pass(self) -> None:
        """Read on in prompts, or run a cycle; both in turn where there are both.

        While a cycle is under way, prompts are read behind it, and the next cycle is sent behind
        that: the device waits for nothing but the outcome of the cycle before.
        """
        self._sweep(self._hear())
        if not self.seats.batch:
            self._forget_passes()  # of those who are gone
        if self._running is None:
            self._admit()
            if self.seats.reader and not (self._read_last and self.seats.batch):
                self._read_last = True
                self._settle(self._passes.read())
                return
        elif self._passes.flow:
            self._admit()
            if self.seats.reader and self._passes.behind() and self._worth_reading():
                self._behind.append(self._passes.read())
        self._read_last = False
        if self.seats.batch:
            self._run()

    def _worth_reading(self) -> bool:
        """Whether prompts are read behind the cycle under way, rather than with others later.

        A pass holds up all who decode. Where nobody waits for a slot, a first token is waited for,
        and half as many prompts make it worth that.
        """
        requests = self.seats.batch.requests
        among = len(requests) if self._line else (len(requests) - requests.count(None)) // 2
        return self.seats.reader.worth(among)

    def _hear(self) -> list[Ticket]:
        """Take in who came, and return who was given up; until the next pass, nobody else is."""
        if self._together is not None:
            self._together.still()
        cancelled = drained(self._cancelled)
        arrived = self._line.hear()
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
                self._passes.reseat()
        if gone:
            self._line.drop(gone)

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
        while self._line:
            ticket = self._line.first
            try:
                if not self._seat(ticket):
                    break
            except Exception as error:  # there is less memory than there seemed to be
                self._line.pop()
                self._end(ticket, error)
                raise
            self._line.pop()
        # What components remember of slots stays where it is, and what a cycle reports.
        reported = self._running is not None and self._running.reports
        if not self._listeners and not reported and self.seats.close_up():
            self._passes.reseat()

    def _seat(self, ticket: Ticket) -> bool:
        """Give one of those who wait a slot; False where it has to wait for others to end."""
        idle = not self.seats
        if idle:
            with self._resolved.blaming():
                self.seats.prepare(self._line.requests)
        if self.seats.take(ticket.request):
            self._tickets[id(ticket.request)] = ticket
            self._listeners.begin(self._slot(ticket.request), ticket.request)
            return True
        if idle:
            raise EagleError("there is no room for a text for which there should be")
        return False

    def _leave(self, slot: int, *, keep: bool = True, spoilt: bool = False) -> None:
        """Let a slot idle, and tell components that its request is over."""
        request, running = self.seats.batch.requests[slot], self._running
        ahead = running is not None and request in running.requests
        self.seats.leave(slot, keep=keep, spoilt=spoilt, ahead=ahead)
        self._listeners.end(slot)

    def _settle(self, reading: Reading) -> None:
        """Deliver the first tokens of the prompts that ended in a pass, once it is done."""
        began = time.perf_counter()
        outcomes = reading.outcome.read() if reading.outcome is not None else []
        self._compare(outcomes)
        found = Logprobs(self._passes.report) if reading.reports else None
        self.tally.reading += reading.seconds + time.perf_counter() - began
        for own, failure in reading.groups:
            seated = self._seated(own, outcomes)
            if failure is None:
                self._listeners.follow(self.seats.batch, seated)
            with roused_together():
                for slot, outcome in failed_last(seated):
                    self._deliver(slot, outcome, failure, verified=False, logprobs=found)

    def _run(self) -> None:
        """Run a cycle and deliver what came of it; start the next one before that, where it may."""
        batch, running = self.seats.batch, self._running
        if running is None:
            running = self._passes.cycle()
        self._running = self._passes.ahead(running)
        outcomes = running.outcome.read()
        self._compare(outcomes)
        found = Logprobs(running.slots.report) if running.reports else None
        own = [(slot, one) for slot, one in enumerate(running.requests) if one is not None]
        seated = self._seated(own, outcomes)
        batch.note(seated)
        self._stranger.note(batch.committed)
        failures = running.processing.failures if running.processing else {}
        self._listeners.follow(batch, (one for one in seated if one[0] not in failures))
        if self._running is None and (ending := self._goes_on(seated)) is not None:
            self._running = self._passes.cycle(ending)
        with roused_together():
            for slot, outcome in failed_last(seated):
                if slot not in failures and batch.requests[slot] is not None:
                    self._deliver(
                        slot, outcome, None, candidates=running.candidates, logprobs=found
                    )
            for slot, failure in failures.items():
                self._deliver(slot, outcomes[slot], failure)
        behind, self._behind = self._behind, []
        for reading in behind:
            self._settle(reading)

    def _seated(
        self, own: Iterable[tuple[int, Request]], outcomes: Sequence[Outcome]
    ) -> list[tuple[int, Outcome]]:
        """Return outcomes by the slots that their requests have now.

        Since the pass began, some may have moved, and others have left: what it did in their slots
        is nobody's.

        Args:
            own: slots, and whose they were when the pass began.
            outcomes: of all slots that it ran over; none where it failed.
        """
        batch, reader = self.seats.batch, self.seats.reader
        places = {one: slot for slot, one in enumerate(batch.requests) if one is not None}
        places.update((reader.request(slot), slot) for slot in reader.slots)
        return [
            (places[one], outcomes[slot] if outcomes else ()) for slot, one in own if one in places
        ]

    def _goes_on(self, outcomes: Sequence[tuple[int, Outcome]]) -> list[int] | None:
        """Return which slots end, where the next cycle may start before tokens are delivered.

        The device then works while the host turns tokens into text, seats who waits and sends
        their prompts behind that cycle.
        """
        if not self._runtime.graph or self._news.left:
            return None
        reader, batch = self.seats.reader, self.seats.batch
        if not self._passes.flow:
            if reader or (self._waits and None in batch.requests):
                return None
            return [] if batch.ending(outcomes, stops=self._waits) == [] else None
        if reader and not self._passes.behind():
            return None
        ending = batch.ending(outcomes)
        alone = ending is not None and len(ending) == len(batch.requests) - len(batch.free)
        return None if alone else ending

    @property
    def _waits(self) -> bool:
        """Whether somebody was seen to wait for a slot, by all processes."""
        return self._news.came or bool(self._line)

    def _compare(self, outcomes: Sequence[Outcome]) -> None:
        """Hold outcomes against those of the processes that hold the target with this one.

        Who is seated is compared, too: a process that goes on with others waits for ever. And look
        whether somebody came or left meanwhile, which all go by if one of them sees it.
        """
        self._news = News(came=bool(self._line.unheard), left=bool(self._cancelled))
        if self._together is not None:
            seats = self.seats
            state = (seats.active, seats.blocks.free, len(self._line))
            ahead = self._running is not None or bool(self._behind)
            self._news = self._together.same((outcomes, state), self._news, ahead=ahead)

    def _deliver(
        self,
        slot: int,
        outcome: Outcome,
        failure: Exception | None,
        *,
        verified: bool = True,
        candidates: int = 0,
        logprobs: Logprobs | None = None,
    ) -> None:
        """Give a slot's new tokens to its request, and let the slot idle if that ends it."""
        seats = self.seats
        request = seats.batch.requests[slot] or seats.reader.request(slot)
        ticket = self._tickets[id(request)]
        request.candidates += candidates
        event = None
        try:
            if failure is None:
                event = seats.batch.deliver(slot, outcome, verified=verified, logprobs=logprobs)
        except Exception as error:
            failure = error
        if failure is not None:
            del self._tickets[id(request)]
            self._passes.reseat()
            self._end(ticket, failure)
            # What processors raise leaves the target's and the head's rows what they should be.
            self._leave(slot, keep=False, spoilt=not isinstance(failure, RequestError))
        elif event is not None:
            if verified:
                self.tally.count_verified(event, candidates)
            else:
                self.tally.count_read(event, len(request.prompt))
            if event.finish_reason:
                del self._tickets[id(request)]
                self._passes.reseat()
                self._leave(slot)
            # Who was cancelled in this pass keeps the slot until the next, in every process.
            told = not ticket.over
            ticket.over = ticket.over or event.result is not None
            if told:
                ticket.sink.put(ticket, event)

    def _forget_passes(self) -> None:
        """Let nothing come of the passes that are under way."""
        self._running, self._behind = None, []

    def _end(self, ticket: Ticket, error: Exception) -> None:
        if not ticket.over:
            ticket.over = True
            ticket.sink.fail(ticket, error)

    def _give_up(self, error: Exception) -> None:
        """Let all fail who are seated: what is in their slots cannot be known."""
        self.seats.let_go()
        self._listeners.give_up()
        self._forget_passes()
        self._passes.reseat()
        tickets, self._tickets = list(self._tickets.values()), {}
        for ticket in tickets:
            self._end(ticket, error)
