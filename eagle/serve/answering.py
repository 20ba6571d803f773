"""Answers on their way to a client: whole, or as server-sent events, until it leaves.

It knows handles and a connection; what an answer looks like is the form's. Whoever leaves has the
requests cancelled within a cycle; whoever does not read what was sent is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from eagle.decoding import Result
from eagle.errors import CancelledError
from eagle.serve.guard import log
from eagle.serve.problems import Problem, encoded, problem_of
from eagle.serve.requests import Asked
from eagle.serve.streaming import sse

__all__ = ["Events", "Whole", "gone"]

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _StalledError(Exception):
    """A client does not read what it is sent."""


class _Answer(Response):
    """A response that ends when the client leaves.

    Args:
        asked: what is cancelled then.
        stall: seconds that a client may take to read what it was sent.
        left: called with the number of requests that were cancelled.
        done: called when nothing more is to come, whatever the reason.
    """

    def __init__(
        self,
        asked: Asked,
        stall: float,
        left: Callable[[int], None],
        done: Callable[[], None],
    ) -> None:
        super().__init__()
        self._asked, self._stall, self._left, self._done = asked, stall, left, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or notice that nobody listens."""
        watching = scope["state"].get("watching")
        try:
            if watching is None:
                await self._watched(scope, receive, send)
            else:
                await self._told_of_leaving(scope, send, watching)
        except _StalledError:
            await asyncio.sleep(0)  # until the connection knows that it is lost
        finally:
            if cancelled := self._asked.cancel():
                self._left(cancelled)
            self._done()

    async def _told_of_leaving(
        self, scope: Scope, send: Send, watching: Callable[[Callable[[], None] | None], bool]
    ) -> None:
        """Answer over a connection that says when it is lost, which takes no tasks to wait for."""
        task, left = asyncio.current_task(), False
        assert task is not None

        def leave() -> None:
            nonlocal left
            left = True
            task.cancel()

        try:
            if watching(leave):
                await self._answer(scope, send)
            else:
                scope["state"]["log"]["left"] = True
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            scope["state"]["log"]["left"] = True
        finally:
            watching(None)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer over another server's connection, which is asked all the time."""
        work = asyncio.create_task(self._answer(scope, send))
        leaving = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                scope["state"]["log"]["left"] = True
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work
            else:
                work.result()
        finally:
            leaving.cancel()

    async def _answer(self, scope: Scope, send: Send) -> None:
        raise NotImplementedError

    async def _send(self, scope: Scope, send: Send, message: dict[str, Any]) -> None:
        if (flows := scope["state"].get("flows")) and flows():  # there is nothing to wait for
            await send(message)
            return
        try:
            async with asyncio.timeout(self._stall):
                await send(message)
        except TimeoutError:
            scope["state"]["log"]["stalled"] = True
            if abort := scope["state"].get("abort"):
                abort()  # closing would wait for what is not read
            raise _StalledError from None

    def _told(self, scope: Scope, error: Exception) -> Problem:
        """Return what a client is told of a failure, and log what it is not told."""
        problem = problem_of(error)
        if problem.status == 500:
            log.error(
                "a request failed", exc_info=error, extra={"request": scope["state"].get("id")}
            )
        return problem


class Whole(_Answer):
    """An answer in one piece.

    Args:
        make: the body, of the results.
        **how: see `_Answer`.
    """

    def __init__(self, make: Callable[[list[Result]], dict[str, Any]], **how: Any) -> None:
        super().__init__(**how)
        self._make = make

    async def _answer(self, scope: Scope, send: Send) -> None:
        status, headers = 200, dict[str, str]()
        try:
            results = [await handle for handle in self._asked.handles]
            body = self._make(results)
        except Exception as error:
            problem = (isinstance(error, CancelledError) and self._asked.why) or self._told(
                scope, error
            )
            status, headers, body = problem.status, problem.headers, problem.body
        content = encoded(body)
        headers |= {"content-type": "application/json", "content-length": str(len(content))}
        await self._send(scope, send, _start(status, headers))
        await self._send(scope, send, {"type": "http.response.body", "body": content})


class Events(_Answer):
    """An answer as server-sent events.

    Args:
        make: gives them, as bytes.
        **how: see `_Answer`.
    """

    def __init__(self, make: Callable[[], AsyncIterator[bytes]], **how: Any) -> None:
        super().__init__(**how)
        self._make = make

    async def _answer(self, scope: Scope, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", **_HEADERS}
        started = False
        straight = scope["state"].get("straight", _never)
        try:
            async for piece in self._make():
                if not started:
                    await self._send(scope, send, _start(200, headers))
                    started = True
                if not straight(piece):
                    await self._send(
                        scope,
                        send,
                        {"type": "http.response.body", "body": piece, "more_body": True},
                    )
        except _StalledError:
            raise
        except Exception as error:
            problem = self._told(scope, error)
            if not started:  # it may still be said by the status
                content = encoded(problem.body)
                plain = {"content-type": "application/json", "content-length": str(len(content))}
                await self._send(scope, send, _start(problem.status, problem.headers | plain))
                await self._send(scope, send, {"type": "http.response.body", "body": content})
                return
            last = sse(problem.body)
        else:
            last = b"data: [DONE]\n\n"
        await self._send(scope, send, {"type": "http.response.body", "body": last})


def _never(piece: bytes) -> bool:
    """Send nothing straight: another's server has the connection."""
    return False


def _start(status: int, headers: dict[str, str]) -> dict[str, Any]:
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": listed}
