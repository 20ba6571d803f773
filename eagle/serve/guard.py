"""What every request passes first: who asks, how much is sent, and what the log says of it.

It knows HTTP, not what is asked. It is plain ASGI, since layers that wrap a response make a stream
of small pieces slow.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from eagle.serve.problems import Problem, problem_of, response, shut_down
from eagle.serve.settings import Settings, is_loopback

__all__ = ["Gate", "Guard", "log"]

log = logging.getLogger("eagle.serve")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[Any, _Receive, _Send], Awaitable[None]]

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = frozenset({"/health"})  # what asks no key: those who watch the machine have none
_PAGE = ("/page/",)


class Gate:
    """Whether requests are let in, which ends before the server does.

    Attributes:
        closing: nobody is let in any more.
        ended: nobody is answered any more.
        reading: the bodies on their way, by how long they may take.
    """

    def __init__(self) -> None:
        self.closing = self.ended = False
        self.reading: set[asyncio.Timeout] = set()

    def end(self) -> None:
        """Let nobody in, and wait for no body any longer."""
        self.closing = self.ended = True
        for limit in self.reading:
            if not limit.expired():
                limit.reschedule(0)


class Guard:
    """Lets a request through to the app, with its whole body read.

    Args:
        app: what answers.
        settings: whom and how much to let in.
        gate: whether to let in anybody.
    """

    def __init__(self, app: _App, settings: Settings, gate: Gate) -> None:
        self._app, self._settings, self._gate = app, settings, gate
        self._key = None if settings.api_key is None else _digest(settings.api_key)

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        """Let a request through, or refuse it; no websockets."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _http(self, scope: Any, receive: _Receive, send: _Send) -> None:
        began = time.perf_counter()
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        number = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["id"], state["log"] = number, {}
        status, complete = 0, False

        async def answer(message: _Message) -> None:
            nonlocal status, complete
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [
                    (b"x-request-id", number.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            try:
                self._admit(scope, headers)
                body = await self._body(scope, headers, receive)
                await self._app(scope, _Replayed(body, receive), answer)
            except Exception as error:
                if not isinstance(error, Problem):
                    log.exception("a mistake of the server's", extra={"request": number})
                if not status:
                    await response(problem_of(error))(scope, receive, answer)
                elif not complete:
                    raise
            except asyncio.CancelledError:
                if not self._gate.ended:
                    raise
                state["log"]["cut_off"] = True
        finally:
            told = {"method": scope["method"], "path": scope["path"][:200], "status": status}
            seconds = round(time.perf_counter() - began, 4)
            log.info(
                "request",
                extra={"request": number, "told": {**told, "seconds": seconds, **state["log"]}},
            )

    def _admit(self, scope: Any, headers: dict[bytes, str]) -> None:
        """Refuse who may not ask, before anything is read of what they ask."""
        path = scope["path"]
        if self._gate.closing and path != "/health":
            raise Problem(503, "the server is shutting down", code="closing")
        if self._key is None:
            # A page from elsewhere may have its own name resolve to this machine. It cannot
            # change what its requests call the host.
            if self._settings.loopback and not is_loopback(_host(headers.get(b"host", ""))):
                raise Problem(
                    403, "this server answers to this machine's own name only", code="wrong_host"
                )
        elif path != "/" and path not in _OPEN and not path.startswith(_PAGE):
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                _digest(key.strip()), self._key
            ):
                raise Problem(
                    401,
                    "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        # A page from elsewhere may send forms and plain text unasked, but no JSON.
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise Problem(415, "the body should be JSON: send 'Content-Type: application/json'")

    async def _body(self, scope: Any, headers: dict[bytes, str], receive: _Receive) -> bytes:
        """Return the whole body, unless it is too long or takes too long."""
        most = self._settings.max_body
        declared = headers.get(b"content-length", "")
        too_long = Problem(413, f"the body is longer than {most:,} bytes", code="too_large")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            raise too_long
        body, more = bytearray(), scope["method"] in ("POST", "PUT", "PATCH")
        limit, reading = asyncio.timeout(self._settings.stall), self._gate.reading
        try:
            async with limit:
                reading.add(limit)
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "the client left before its body had come")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_long
        except TimeoutError as error:
            if self._gate.ended:
                raise shut_down() from error
            raise Problem(
                408, f"the body did not come within {self._settings.stall:g} seconds"
            ) from error
        finally:
            reading.discard(limit)
        return bytes(body)


class _Replayed:
    """Gives a body that was read already, and then what the connection says."""

    def __init__(self, body: bytes, receive: _Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> _Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message


class JsonLines(logging.Formatter):
    """One line of JSON for each record: time, level, event, the request's id and its figures."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if request := getattr(record, "request", None):
            line["request_id"] = request
        line |= getattr(record, "told", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _digest(key: str) -> bytes:
    # Of equal length whatever was sent, so that comparing takes the same time.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header
