"""What whoever submitted a request holds: its events and its result, as they come.

It is written to by whichever thread decodes, and read by any number of threads and asyncio tasks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from eagle.decoding.requests import Event, Result
from eagle.decoding.rousing import rouse
from eagle.decoding.tickets import Ticket
from eagle.errors import CancelledError, EagleError, RequestError, again

__all__ = ["Driver", "Handle", "News"]

_PATIENCE = 1.0  # seconds between looks at whether anybody is still decoding


class Driver(Protocol):
    """What answers requests, as far as a handle has to know it."""

    thread: threading.Thread

    def cancel(self, ticket: Ticket) -> bool:
        """Cancel a request; return whether it was not over."""


class Handle:
    """A request that was submitted, in whatever state it is; see `eagle.Engine.submit`.

    Iterating, ``async for`` included, gives all its events from the first on, waiting for those
    that have not come; each iteration starts anew. ``await handle`` gives what `result` gives.
    Leaving an iteration, or a task that awaits, does not cancel the request: `cancel` does.

    Args:
        driver: what answers the request.
        kept: is kept as long as this is: an engine that is forgotten ends.

    Attributes:
        ticket: the request, as the loop has it.
    """

    ticket: Ticket

    def __init__(self, driver: Driver, kept: object = None) -> None:
        self._driver, self._kept = driver, kept
        self._lock = threading.RLock()
        # Who waits for the result is not woken by every event.
        self._changed, self._ended = _Waiting(self._lock), _Waiting(self._lock)
        self._events: list[Event] = []
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether the request was answered, has failed or was cancelled."""
        return self._error is not None or self._answer is not None

    @property
    def seed(self) -> int:
        """Of the request's chance; see `eagle.Result`."""
        return self.ticket.request.seed

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            TimeoutError: it takes longer; the request goes on.
            CancelledError: the request was cancelled.
            EagleError: the request failed; see `eagle.Decoder.generate`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self.done:
                self._wait(self._ended, end)
            return self._outcome()

    def cancel(self) -> bool:
        """Let nothing more come of the request; its slot is free within a cycle.

        Returns:
            Whether that was in time: False where it was answered or had failed before.
        """
        if not self._driver.cancel(self.ticket):
            return False
        self.fail(CancelledError("the request was cancelled before it was answered"))
        return True

    def __iter__(self) -> Iterator[Event]:
        """Give every event, waiting for those that have not come.

        Raises:
            EagleError: as `result`, behind the events that came before.
        """
        place = 0
        while True:
            with self._lock:
                while not self._settled(place):
                    self._wait(self._changed, None)
                event = self._at(place)
            if event is None:
                return
            place += 1
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give every event, letting other tasks go on meanwhile; see `__iter__`."""
        with News([self]) as news:
            while found := await news.take():
                for _, event in found:
                    yield event

    def __await__(self) -> Generator[Any, None, Result]:
        """Wait for the result, letting other tasks go on meanwhile; see `result`."""
        return self._awaited().__await__()

    async def _awaited(self) -> Result:
        if not self.done:
            with News([self], ends=True) as news:
                await news.all_over()
        return self._outcome()

    # --- from the thread that decodes -------------------------------------------------------------

    def put(self, event: Event) -> None:
        """Take in an event."""
        with self._lock:
            if self._error is None:
                self._events.append(event)
            self._tell()

    def fail(self, error: Exception) -> None:
        """Take in what keeps the request from being answered, unless it is over."""
        with self._lock:
            if not self.done:
                self._error = error
            self._tell()

    def _tell(self) -> None:
        self._changed.tell()
        if self.done:
            self._ended.tell()

    # --- for those who wait -----------------------------------------------------------------------

    @property
    def _answer(self) -> Result | None:
        return self._events[-1].result if self._events else None

    def _outcome(self) -> Result:
        if self._error is not None:
            raise again(self._error)
        assert self._answer is not None
        return self._answer

    @property
    def _wakers(self) -> list[Callable[[], None]]:
        return [*self._changed.wakers, *self._ended.wakers]

    def _settled(self, place: int) -> bool:
        """Return whether it is known what stands at a place among the events."""
        return self.done or place < len(self._events)

    def _at(self, place: int) -> Event | None:
        if place < len(self._events):
            return self._events[place]
        if self._error is not None:
            raise again(self._error)
        return None

    def _wait(self, for_what: _Waiting, end: float | None) -> None:
        """Wait for a change, for a second at most; whoever has the lock calls."""
        self._may_wait()
        left = _PATIENCE if end is None else min(end - time.monotonic(), _PATIENCE)
        if left <= 0:
            raise TimeoutError("the request has not been answered yet; it goes on")
        for_what.wait(left)
        self._look()

    def _may_wait(self) -> None:
        if self._driver.thread is threading.current_thread():
            raise RequestError(
                "this waits for an answer in the thread that would give it: a logits processor "
                "cannot wait for a request of its own engine"
            )

    def _look(self) -> None:
        """Fail where nobody will ever answer: in a child of the process with the thread, say."""
        if not self.done and not self._driver.thread.is_alive():
            self.fail(EagleError("the engine's thread has ended without an answer"))


class News:
    """What comes of several requests, for one task of asyncio's, for the length of a block.

    Args:
        handles: the requests.
        ends: it waits for their ends alone, and is not woken by what comes before.
    """

    def __init__(self, handles: Sequence[Handle], *, ends: bool = False) -> None:
        self._handles, self._places = handles, [0] * len(handles)
        self._waited = [handle._ended if ends else handle._changed for handle in handles]
        self._loop = asyncio.get_running_loop()
        self._asked = False
        self._called = False  # the loop is going to wake the task, which has not looked yet
        self._arrived: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def __enter__(self) -> News:
        for handle, waited in zip(self._handles, self._waited, strict=True):
            with handle._lock:
                waited.wakers = [*waited.wakers, self._call]
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        if self._patience is not None:
            self._patience.cancel()
        for handle, waited in zip(self._handles, self._waited, strict=True):
            with handle._lock:
                waited.wakers = [other for other in waited.wakers if other != self._call]

    async def take(self) -> list[tuple[int, Event]]:
        """Return all events that have come since, each with its request's number; wait for one.

        Returns:
            Nothing where all requests are over.

        Raises:
            EagleError: one has failed or was cancelled; what came before was taken.
        """
        places = self._places
        while True:
            self._called = False
            found: list[tuple[int, Event]] = []
            over, failed = True, None
            for index, handle in enumerate(self._handles):
                # Looked at first: nothing comes behind an end.
                over = over and handle.done
                failed = handle._error if failed is None else failed
                events, place = handle._events, places[index]
                if len(events) > place:
                    new = events[place:]
                    places[index] = place + len(new)
                    found += [(index, event) for event in new]
            if found:
                return found
            if failed is not None:
                raise again(failed)
            if over:
                return []
            await self._change()

    async def all_over(self) -> None:
        """Wait until all were answered, have failed or were cancelled."""
        while not all(handle.done for handle in self._handles):
            self._called = False
            await self._change()

    async def _change(self) -> None:
        """Wait until something came, once the requests were looked at."""
        if not self._asked:  # once: a loop keeps its thread
            for handle in self._handles:
                handle._may_wait()
            self._asked = True
        # Neither `asyncio.Event` nor `wait_for`: each has the loop go round once more before this
        # goes on, and each round gives the interpreter up to the thread that decodes.
        self._arrived = self._loop.create_future()
        await self._arrived

    def _call(self) -> None:
        """Have the task look: called by any thread, with a handle's lock."""
        if not self._called:
            self._called = True
            rouse(self._loop, self._settle)

    def _settle(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _look(self) -> None:
        """See to it that nobody waits where nobody decodes."""
        for handle in self._handles:
            handle._look()
        self._patience = self._loop.call_later(_PATIENCE, self._look)


class _Waiting:
    """Threads and asyncio tasks that wait for the same.

    Args:
        lock: whoever calls has it.

    Attributes:
        wakers: wake one task each; never changed in place.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._condition, self._threads = threading.Condition(lock), 0
        self.wakers: Sequence[Callable[[], None]] = ()

    def wait(self, seconds: float) -> None:
        """Let this thread wait, for so long at most."""
        self._threads += 1
        try:
            self._condition.wait(seconds)
        finally:
            self._threads -= 1

    def tell(self) -> None:
        """Wake all."""
        if self._threads:
            self._condition.notify_all()
        for wake in self.wakers:
            wake()
