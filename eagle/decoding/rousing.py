"""Calls into asyncio's loops from threads that decode: one for all that a pass gave.

A call wakes the loop's thread, which asks for the interpreter at once. Were there one for each
request, that thread would get it in the middle of what the pass has for the others, and once more
for each of them. It knows no request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["rouse", "roused_together"]

_Call = Callable[[], None]


class _Held(threading.local):
    """What is called by this thread when its block ends; None outside of one."""

    calls: dict[asyncio.AbstractEventLoop, list[_Call]] | None = None


_HELD = _Held()


def rouse(loop: asyncio.AbstractEventLoop, call: _Call) -> None:
    """Have a loop call something, now or where this thread's block ends; a closed loop does not."""
    if _HELD.calls is None:
        _call(loop, [call])
    else:
        _HELD.calls.setdefault(loop, []).append(call)


@contextmanager
def roused_together() -> Iterator[None]:
    """Let loops be called once, behind this block, with all that this thread has for them."""
    before, _HELD.calls = _HELD.calls, {}
    try:
        yield
    finally:
        calls, _HELD.calls = _HELD.calls, before
        for loop, listed in calls.items():
            _call(loop, listed)


def _call(loop: asyncio.AbstractEventLoop, calls: list[_Call]) -> None:
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(_all, calls)


def _all(calls: list[_Call]) -> None:
    for call in calls:
        call()
