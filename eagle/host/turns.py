"""Who may use a target or a decoder's slots right now, among threads; knows nothing of either.

Two things are held, for different lengths of time. A target's layers are laid out for one kind of
pass at a time and keep what one projection worked out for the next, so whoever runs passes or
changes the layout has the target for that long (`Turn`), and others wait. A decoder's slots hold
one stream's texts from its first event to its last, so the stream has them for all that time
(`Seat`), and another thread's stream is refused at once: it might wait for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from eagle.errors import CopyError, RequestError

__all__ = ["Seat", "Stay", "Turn", "Whole", "in_turn"]


class Whole:
    """What exists once: copying or pickling it raises.

    Attributes:
        copied: what is said then, of the thing itself.
    """

    copied = "it"

    def __reduce_ex__(self, protocol: object) -> str | tuple[object, ...]:
        raise CopyError(f"{self.copied} cannot be copied, pickled or sent to another process")


class Turn(Whole):
    """Lets one thread at a time use a target, in the order in which they came.

    The thread that has it may take it again: `Target.stock` within a logits processor, say. It is
    not a `threading.RLock`, which whoever releases it gets back before anybody who waits.
    """

    copied = (
        "a target (its layers are hooked and shared by decoders; load it anew in the other process)"
    )

    def __init__(self) -> None:
        self._gate = threading.RLock()  # for some instructions; a collector may interrupt them
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._owner: int | None = None
        self._what: list[str] = []

    @contextmanager
    def held(self, what: str, *, within: bool = True) -> Iterator[None]:
        """Have the turn for the length of a block, waiting for it as long as others have it.

        Args:
            what: the block, as a refusal names it.
            within: whether it may stand within another block of this thread.

        Raises:
            RequestError: it may not, and does.
        """
        self._take(what, within)
        try:
            yield
        finally:
            self._pass_on()

    def _take(self, what: str, within: bool) -> None:
        me = threading.get_ident()
        with self._gate:
            if self._owner == me:
                if not within:
                    raise RequestError(
                        f"{what} was asked for inside {self._what[-1]} of the same target, which "
                        "it would disturb; do it before or after that"
                    )
                self._what.append(what)
                return
            if self._owner is None:
                self._owner, self._what = me, [what]
                return
            baton = threading.Lock()
            baton.acquire()
            self._waiting.append((me, baton))
        try:
            baton.acquire()
        except BaseException:  # Ctrl-C: perhaps just when the turn had come
            with self._gate:
                if (me, baton) in self._waiting:
                    self._waiting.remove((me, baton))
                elif self._owner == me:
                    self._pass_on()
            raise
        self._what = [what]

    def _pass_on(self) -> None:
        with self._gate:
            if self._what:
                self._what.pop()
            if self._what:
                return
            self._owner = None
            if self._waiting:
                self._owner, baton = self._waiting.popleft()
                baton.release()


_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_turn(what: str) -> Callable[[_Method], _Method]:
    """Let a method of what has a `turn` have it while it runs; see `Turn.held`."""

    def decorate(method: _Method) -> _Method:
        @wraps(method)
        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            with self.turn.held(what):
                return method(self, *args, **options)

        return cast("_Method", wrapped)

    return decorate


class Stay:
    """One stream's use of a decoder's slots.

    Attributes:
        thread: which thread asked for its latest event.
        over: the stream has ended, or was closed or collected.
    """

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.over = False


class Seat:
    """Keeps a decoder's slots for one stream.

    Another stream of the same thread displaces it, for that thread can see what it does; so does
    any stream where the thread has ended. A stream of another thread is refused.
    """

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._stay: Stay | None = None

    def take(self) -> Stay:
        """Begin a stream's stay.

        Raises:
            RequestError: a stream of another thread has not ended.
        """
        with self._gate:
            other, mine = self._stay, Stay()
            if (
                other is not None
                and not other.over
                and other.thread is not mine.thread
                and other.thread.is_alive()
            ):
                raise RequestError(
                    "this decoder is answering in another thread, and holds one stream or "
                    "generate at a time; give all prompts to one call, wait until that one has "
                    "ended (a stream that is not read to its end is ended by close()), or make a "
                    "second decoder of the same target"
                )
            self._stay = mine
            return mine

    def holds(self, stay: Stay) -> bool:
        """Return whether no other stream has displaced this one."""
        return self._stay is stay

    def go_on(self, stay: Stay) -> None:
        """Go on with a stream, in whichever thread asks for its next event.

        Raises:
            RequestError: another stream has displaced it.
        """
        with self._gate:
            if self._stay is not stay:
                raise RequestError(
                    "another generate or stream was started on this decoder before this stream "
                    "ended; give both prompts to one call, or make a second decoder"
                )
            stay.thread = threading.current_thread()
