"""Servers that do less than one has to: what is left when theirs is taken off is the server's own.

None of them is of use: they check nothing, and know one client's way to ask.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from eagle.decoding import Engine

__all__ = ["Bare", "hello"]


def hello() -> FastAPI:
    """Return an application that reads a body and streams one word: HTTP without an engine."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        json.loads(await request.body())

        async def word() -> AsyncIterator[bytes]:
            yield b"data: hello\n\n"

        return StreamingResponse(word(), media_type="text/event-stream")

    return app


class Bare(asyncio.Protocol):
    """An engine behind a socket, without HTTP: heads are not looked at, and nothing is checked."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._got, self._tasks = engine, b"", set[asyncio.Task[None]]()

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a whole request has come."""
        self._got += data
        head, _, body = self._got.partition(b"\r\n\r\n")
        if body and len(body) == int(head.rpartition(b"Content-Length: ")[2]):
            self._got = b""
            task = asyncio.get_running_loop().create_task(self._answer(json.loads(body)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: dict[str, Any]) -> None:
        head = b"HTTP/1.1 200 OK\r\n\r\n"
        async for event in self._engine.submit(
            asked["messages"],
            max_new_tokens=asked["max_tokens"],
            temperature=asked["temperature"],
            ignore_eos=asked["ignore_eos"],
        ):
            told = json.dumps({"text": event.text}).encode()
            self._transport.write(head + b"data: " + told + b"\n\n")
            head = b""
        self._transport.write(b"\r\n0\r\n\r\n")
