"""Who may use a target right now, among threads; knows nothing of targets.

A target's layers are laid out for one kind of pass at a time and keep what one projection worked
out for the next, so whoever runs passes or changes the layout has the target for that long, and
others wait.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from eagle.errors import CopyError, RequestError

__all__ = ["Turn", "Whole", "in_turn"]


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
        self._keeps = False  # the first block is one of several, which do not disturb it
        self._lost = False  # a child's, forked in the middle of a block of a thread that it lacks
        _TURNS.add(self)

    @contextmanager
    def held(self, what: str, *, within: bool = True) -> Iterator[None]:
        """Have the turn for the length of a block, waiting for it as long as others have it.

        Args:
            what: the block, as a refusal names it.
            within: whether it may stand within another block of this thread.

        Raises:
            RequestError: it may not, and does; or the process was forked in another thread's block.
        """
        self._take(what, within)
        try:
            yield
        finally:
            self._pass_on()

    @contextmanager
    def kept(self, what: str) -> Iterator[None]:
        """Have the turn for several blocks, of which each stands as if it were by itself.

        Args:
            what: all of it, as a refusal names it.

        Raises:
            RequestError: it stands within another block of this thread.
        """
        if self._owner == threading.get_ident():
            raise self._disturbed(what)
        self._take(what, False)
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._pass_on()

    @contextmanager
    def tried(self, what: str) -> Iterator[bool]:
        """Have the turn for the length of a block if nobody has it now, and say whether.

        It waits for nobody, so a collector may ask for it in the middle of anything.
        """
        with self._gate:
            had = self._owner is None and not self._lost
            if had:
                self._owner, self._what = threading.get_ident(), [what]
        try:
            yield had
        finally:
            if had:
                self._pass_on()

    def _take(self, what: str, within: bool) -> None:
        me = threading.get_ident()
        with self._gate:
            if self._lost:
                raise RequestError(
                    f"{what} is not possible in this process: it was forked while another thread "
                    f"had the target ({self._what[0]}), and that thread is not here to end what it "
                    "began; load the target in the process itself, or fork while nobody decodes"
                )
            if self._owner == me:
                if not within and not (self._keeps and len(self._what) == 1):
                    raise self._disturbed(what)
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

    def _disturbed(self, what: str) -> RequestError:
        return RequestError(
            f"{what} was asked for inside {self._what[-1]} of the same target, which "
            "it would disturb; do it before or after that"
        )

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

    def _forked(self) -> None:
        """Settle, in a child of the process, whether the turn is to be had."""
        self._gate = threading.RLock()  # whoever had it may not be here
        self._waiting.clear()
        self._lost = self._lost or self._owner not in (None, threading.get_ident())


_TURNS: weakref.WeakSet[Turn] = weakref.WeakSet()


def _forked() -> None:
    for turn in list(_TURNS):
        turn._forked()


if hasattr(os, "register_at_fork"):  # Windows has no such thing
    os.register_at_fork(after_in_child=_forked)


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
