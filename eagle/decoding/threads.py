"""The thread of an engine, which drives its decoder's loop, and what it counts meanwhile.

It knows who has been answered and when the thread ends; it makes no request.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass

from eagle.decoding.decoder import Decoder
from eagle.decoding.handles import Handle
from eagle.decoding.leading import Follower, Lead
from eagle.decoding.loop import Loop
from eagle.decoding.requests import Event
from eagle.decoding.tickets import Ticket
from eagle.errors import ClosedError, EagleError, QueueFullError, RequestError, reason
from eagle.target import Together

__all__ = ["EngineStats", "EngineThread", "FollowingThread", "thread_of"]

_SPAN = 10  # seconds that a rate is of


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing, for those who operate it.

    Attributes:
        waiting: requests without a slot.
        active: requests with one: those that are decoded, or whose prompts are read.
        slots: how many requests can have one.
        blocks: blocks of the cache that texts have; 0 where rows do not lie in blocks.
        total_blocks: how many there are.
        finished: requests that were answered.
        failed: requests that were not, but for those that were cancelled.
        cancelled: requests that were cancelled.
        tokens: tokens given.
        tokens_per_second: tokens given in the last ten seconds, for each of these.
        tau: tokens committed per verification, of all requests so far.
        cycles: cycles that were started; each verifies for all requests that are decoded then.
        verified: verifications, of all requests.
        accepted_per_position: of draft position 1, 2 and so on, in how many of these its token was
            accepted.
        prompt_tokens: tokens of the prompts that were read.
        drafted: candidates that were verified, of all requests.
    """

    waiting: int
    active: int
    slots: int
    blocks: int
    total_blocks: int
    finished: int
    failed: int
    cancelled: int
    tokens: int
    tokens_per_second: float
    tau: float
    cycles: int
    verified: int
    accepted_per_position: tuple[int, ...]
    prompt_tokens: int
    drafted: int


class EngineThread:
    """The thread of an engine, which it keeps even where nobody keeps the engine."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._gate = threading.RLock()  # a collector may close an engine in the middle of it
        self._wake = threading.Event()
        self._open: set[Ticket] = set()  # neither answered nor failed nor cancelled
        self._counts = {"finished": 0, "failed": 0, "cancelled": 0}
        self._given: dict[int, int] = {}  # tokens, by the second
        self._tokens = 0
        self._began = time.monotonic()
        self.closing = False
        self.broken: BaseException | None = None
        self.thread = threading.Thread(target=self._drive, name="eagle-engine", daemon=True)

    def start(self) -> None:
        """Begin; it ends with the program at the latest."""
        self.thread.start()
        _ended_in_time()
        _THREADS.add(self)

    def check(self) -> None:
        """Refuse requests that come too late."""
        if self.broken is not None:
            raise ClosedError(
                f"the engine broke: {type(self.broken).__name__}: {self.broken}"
            ) from self.broken
        if self.closing or not self.thread.is_alive():
            raise ClosedError("the engine was closed; make another one of its decoder")

    def submit(self, ticket: Ticket, queue: int) -> None:
        """Take in a ticket unless there are too many."""
        with self._gate:
            self.check()
            if self._loop.waiting >= queue:
                raise QueueFullError(
                    f"{queue} requests wait for a slot, and no more may (queue); ask again when "
                    "some were answered, or make the engine with a longer queue"
                )
            self._open.add(ticket)
            self._loop.submit([ticket])
        self._wake.set()

    def cancel(self, ticket: Ticket) -> bool:
        """Cancel a request; return whether it was not over."""
        if not self._leave(ticket, "cancelled"):
            return False
        self._loop.cancel([ticket])
        self._wake.set()
        return True

    def tally(self, handle: Handle) -> _Tally:
        """Return a sink that counts what a handle is given."""
        return _Tally(self, handle)

    def put(self, ticket: Ticket, event: Event) -> bool:
        """Count an event; return whether its request is still open."""
        second = int(time.monotonic())
        with self._gate:
            if ticket not in self._open:
                return False
            self._tokens += len(event.tokens)
            if second not in self._given:
                self._given = {s: n for s, n in self._given.items() if s >= second - _SPAN}
                self._given[second] = 0
            self._given[second] += len(event.tokens)
        return event.result is None or self._leave(ticket, "finished")

    def fail(self, ticket: Ticket) -> bool:
        """Count a failure; return whether its request was open."""
        return self._leave(ticket, "failed")

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        loop, now = self._loop, time.monotonic()
        with self._gate:
            recent = sum(n for second, n in self._given.items() if second > now - _SPAN)
            counts, tokens = dict(self._counts), self._tokens
        seats, span = loop.seats, max(min(_SPAN, now - self._began), 1e-9)
        blocks = seats.blocks
        return EngineStats(
            waiting=loop.waiting,
            active=seats.active,
            slots=seats.limit,
            blocks=blocks.total - blocks.free,
            total_blocks=blocks.total,
            tokens=tokens,
            tokens_per_second=recent / span,
            tau=loop.tally.committed / loop.tally.verified if loop.tally.verified else 0.0,
            cycles=loop.cycles,
            verified=loop.tally.verified,
            accepted_per_position=tuple(loop.tally.accepted),
            prompt_tokens=loop.tally.prompt_tokens,
            drafted=loop.tally.drafted,
            **counts,
        )

    def close(self, *, drain: bool) -> None:
        """Take no more requests; the thread ends when none is left."""
        with self._gate:
            self.closing = True
            left = [] if drain else list(self._open)
        for ticket in left:
            if isinstance(ticket.sink, _Tally):
                ticket.sink.handle.cancel()
        self._wake.set()

    def check_thread(self) -> None:
        """Refuse to wait for the thread in itself, before anything is done."""
        if self.thread is threading.current_thread():
            raise RequestError("an engine cannot be closed from within its own thread")

    def _leave(self, ticket: Ticket, how: str) -> bool:
        with self._gate:
            if ticket not in self._open:
                return False
            self._open.discard(ticket)
            self._counts[how] += 1
            if self.closing:  # perhaps another thread gave the last answer, driving the loop
                self._wake.set()
            return True

    def _drive(self) -> None:
        loop = self._loop
        try:
            loop.enter()
            while True:
                self._wake.clear()
                while loop.busy:
                    loop.drive(bool)  # nothing is waited for but that it is done
                with self._gate:
                    if self.closing and not self._open:
                        break
                self._wake.wait()
            if loop.lead is not None:
                loop.retire()
        except BaseException as error:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Let all that were submitted fail of what ended the thread."""
        told = error if isinstance(error, Exception) else EagleError("the engine's thread ended")
        if self._loop.lead is not None:
            self._loop.lead.abandon(reason(error))
        with self._gate:
            self.broken = error
            left = list(self._open)
        try:
            with suppress(RequestError):  # in a forked child, the target may not be to be had
                self._loop.fail(told)
        finally:
            for ticket in left:  # also where that failed, too
                ticket.sink.fail(ticket, told)


class FollowingThread(EngineThread):
    """The thread of an engine in a process that follows the first one."""

    def __init__(self, decoder: Decoder, together: Together) -> None:
        super().__init__(decoder.loop)
        self._follower, self._together = Follower(decoder, together), together

    def close(self, *, drain: bool) -> None:
        """Let nobody do anything: the first process says when it is over."""

    def _drive(self) -> None:
        try:
            self._loop.enter()
            self._follower.run()
        except BaseException as error:
            self._together.abandon(reason(error))
            self._break(error)
        finally:
            self.closing, self._together.led = True, False


def thread_of(decoder: Decoder, queue: int) -> EngineThread:
    """Return the thread that drives a decoder's loop here: by itself, or as the first process does.

    Raises:
        PartedError: the processes that hold the target make different engines.
        RequestError: another engine is open, or a stream of the decoder.
    """
    together = decoder.target.together
    if together is None:
        return EngineThread(decoder.loop)
    busy, spec = decoder.loop.busy, decoder.spec.model_dump(mode="json")
    together.agree("engine", {"queue": queue, "busy": busy, "spec": spec})
    if busy:
        raise RequestError("a stream of this decoder is under way; end it before an engine leads")
    together.led = True
    if not together.main:
        return FollowingThread(decoder, together)
    decoder.loop.lead = Lead(together)
    return EngineThread(decoder.loop)


class _Tally:
    """A handle's sink."""

    def __init__(self, driver: EngineThread, handle: Handle) -> None:
        self._driver, self.handle = driver, handle

    def put(self, ticket: Ticket, event: Event) -> None:
        if self._driver.put(ticket, event):
            self.handle.put(event)

    def fail(self, ticket: Ticket, error: Exception) -> None:
        if self._driver.fail(ticket):
            self.handle.fail(error)


_THREADS: weakref.WeakSet[EngineThread] = weakref.WeakSet()


@functools.cache
def _ended_in_time() -> None:
    """See to it that threads are ended before what they use: what is registered last goes first."""
    atexit.register(_end)


def _end() -> None:
    """End all threads with the program: what they compute with is taken apart after that."""
    for driver in list(_THREADS):
        driver.close(drain=False)
        driver.thread.join()
