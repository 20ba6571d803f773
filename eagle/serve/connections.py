"""A client's connection: what is read of it is bounded, and streams are sent past ASGI's layers.

It knows HTTP and uvicorn; who is answered what is the application's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["Connection"]

_PIECE = 1 << 14  # bytes that are parsed at a time
# Bytes of a head, or of whatever else is no body, behind the piece that it begins in: llhttp itself
# has no bound.
_FRAMING = 3 * _PIECE
_AHEAD = 32  # requests that may come before the answer to one


class Connection(HttpToolsProtocol):
    """A connection that is closed unless whole heads of requests come soon, and can be cut off.

    Answers that are streams may be sent `straight`, and are told when the client leaves.
    """

    _head: asyncio.TimerHandle | None = None
    _leave: Callable[[], None] | None = None
    # The parser goes on to requests behind the one that is answered, of which uvicorn knows less.
    _answered: RequestResponseCycle | None = None
    _version = b""  # of a request that wishes for another protocol
    _framing = 0  # bytes since the last message, or chunk, began that are none of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        ways = {
            "abort": transport.abort,
            "straight": self.straight,
            "flows": lambda: not self.flow.write_paused,
            "watching": self.watching,
        }
        self.app_state = {**self.app_state, **ways}
        self._await_head()

    def straight(self, piece: bytes) -> bool:
        """Send a piece of a body that has begun and has no length, past ASGI's layers.

        These take longer than all else that is done for an event.

        Returns:
            Whether that could be done: not where the client reads too slowly, which has to be
            waited for, has left, or knows no chunks.
        """
        cycle = self._answered
        if cycle is None or self.flow.write_paused or cycle.disconnected:
            return False
        if not cycle.chunked_encoding:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    def watching(self, leave: Callable[[], None] | None) -> bool:
        """Have something called when the client leaves, or nothing any longer.

        Returns:
            Whether the client is still there; where it is not, nothing is called.
        """
        self._leave = leave
        return self._answered is not None and not self._answered.disconnected

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._cancel_head()
        self.pipeline.clear()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        if self._leave is not None:
            self._leave()

    def data_received(self, data: bytes) -> None:
        """Read what has come, or refuse what is no HTTP or has no end."""
        self._unset_keepalive_if_required()
        place = 0
        while place < len(data):
            piece = data[place : place + _PIECE]
            self._framing += len(piece)
            try:
                self.parser.feed_data(piece)
                place += len(piece)
            except httptools.HttpParserUpgrade as upgrade:
                place += upgrade.args[0]
                if not self._stayed():
                    return
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            if self._framing >= _FRAMING or len(self.pipeline) > _AHEAD:
                self.send_400_response("What came is too long.")
                return

    def _stayed(self) -> bool:
        """Read a head once more without the wish for another protocol, behind which none is read.

        Clients wish for HTTP/2 in passing, and go on with this one where nothing is said of it.
        """
        parser = self.parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, self._version)]
        for name, value in self.headers:
            if name == b"connection":
                words = [word.strip() for word in value.split(b",")]
                value = b", ".join(word for word in words if word.lower() != b"upgrade")
            if name != b"upgrade" and value:
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        try:
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # CONNECT is such a wish
            self.send_400_response("Invalid HTTP request received.")
            return False
        return True

    def send_400_response(self, msg: str) -> None:
        """Refuse what was sent; a client in the middle of an answer is left."""
        self.logger.warning(msg)
        if self._answered is None or self._answered.response_complete:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """See `httptools.HttpRequestParser`."""
        self._framing = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """See `httptools.HttpRequestParser`."""
        self._framing -= len(body)
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        self._framing = 0

    def on_headers_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        self._framing = 0
        if self.parser.should_upgrade():
            self._version = self.parser.get_http_version().encode()
            return
        super().on_headers_complete()
        self.headers = []  # for a trailer, which is none of the request's

    def on_message_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Await the next request, which may have come."""
        self._await_head()  # and where it is closed, that what was sent is read
        super().on_response_complete()  # which begins the next request, if that has come

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._cancel_head()
        self._answered = cycle
        if cycle.scope["http_version"] == "1.0" and cycle.scope["method"] != "HEAD":
            app = _unchunked(cycle, app)
        super()._start_asgi_task(cycle, app)

    def _await_head(self) -> None:
        # uvicorn's own timer is for connections without any byte: a single one ends it.
        self._cancel_head()
        self._head = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def _cancel_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def _unchunked(cycle: RequestResponseCycle, app: Any) -> Any:
    """Return an application for a client of HTTP/1.0, which knows no chunks."""
    scope = cycle.scope
    # For uvicorn, so that it announces no chunks and writes no body.
    cycle.scope = {**scope, "method": "HEAD"}

    async def answer(_: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if body := message.get("body"):
                if cycle.flow.write_paused and not cycle.disconnected:
                    await cycle.flow.drain()
                if not cycle.disconnected:
                    cycle.transport.write(body)
            await send(message)

        await app(scope, receive, sent)

    return answer
