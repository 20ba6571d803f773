"""A server from its first to its last moment: the socket, signals, and what is still under way.

It knows uvicorn; what is answered is the application's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from eagle.decoding import Engine
from eagle.errors import EagleError
from eagle.serve.app import Service, create_app
from eagle.serve.connections import Connection
from eagle.serve.guard import JsonLines
from eagle.serve.settings import Settings

__all__ = ["Running", "log_to", "reserved", "run"]

_CONNECTIONS = 1024
_KEEP_ALIVE = 30  # seconds that an idle connection is kept, and that a request's head may take
_LAST_WORDS = 1.0  # seconds in which those who are cut off are told so
# Seconds after which a thread that waits for the interpreter has it; 0.005 is Python's own. Where
# the engine's thread computes, an event waits for that several times on its way out.
_TURN = 0.0005


def reserved(host: str, port: int) -> socket.socket:
    """Return a socket that has an address, and does not listen yet.

    Raises:
        EagleError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by its name: asyncio turns Nagle's algorithm off only where it finds that. With
    # the algorithm, a kept connection's first event waits 40 ms for the head's acknowledgement.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # a port that was just left can be had again
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise _unavailable(host, port, error) from error
    return made


def _unavailable(host: str, port: int, error: OSError) -> EagleError:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return EagleError(f"--host {host}: this machine has no such address")
    known = {errno.EADDRINUSE: "is in use", errno.EACCES: "is for the administrator alone"}
    why = known.get(error.errno or 0, f"cannot be had ({error.strerror})")
    return EagleError(f"port {port} of {host} {why}; choose another with --port")


class Running(uvicorn.Server):
    """A server that lets requests under way end, and says so where it cannot.

    Args:
        service: what the application is built on.
        app: the application.
        told: called with what a person should know.
    """

    def __init__(self, service: Service, app: Any, told: Callable[[str], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=True,
                proxy_headers=False,
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE,
            )
        )
        self._service, self._told, self._captured = service, told, False

    async def on_tick(self, counter: int) -> bool:
        """Say whether to end now: asked ten times a second."""
        return await super().on_tick(counter) or self._service.engine.broken is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and end when none is left or time is up."""
        service, loop = self._service, asyncio.get_running_loop()
        service.gate.closing = True
        grace = service.settings.grace
        count = len(service.live) + len(service.taking) + len(service.gate.reading)
        if count := count + service.watcher.waiting:
            self._told(
                f"{count} request{'s' * (count > 1)} under way; what is not answered within "
                f"{grace:g} seconds is cut off (at once, if this is told to end again)"
            )
        # Also where nothing is seen yet: a body that comes slowly becomes a request later.
        timer = loop.call_later(grace, self._cut_off)
        try:
            await super().shutdown(sockets)
            await self.lifespan.shutdown()  # which is left out where the end was forced
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        """Let nobody wait any longer, and end whether or not they go."""
        self._service.end()
        asyncio.get_running_loop().call_later(_LAST_WORDS, self._leave)

    def _leave(self) -> None:
        """Leave who has not read the last words: Python 3.12 waits for all connections to end."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal when all is answered, at the second at once."""
        if self.should_exit:
            with contextlib.suppress(RuntimeError):  # nothing runs yet, or any more
                asyncio.get_running_loop().call_soon_threadsafe(self._cut_off)
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end, with threads that take turns soon."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, _TURN))
        try:
            super().run(sockets)
        finally:
            sys.setswitchinterval(before)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have signals end the server, and not be raised once more behind it.

        uvicorn does so once the loop runs; who listens before that does it before.
        """
        if self._captured or threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
        self._captured = True
        try:
            yield
        finally:
            self._captured = False
            for kind, handler in before.items():
                signal.signal(kind, handler)


def run(
    engine: Engine,
    settings: Settings,
    sockets: list[socket.socket],
    *,
    told: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve until a signal ends it, and close the engine.

    Args:
        engine: what answers.
        settings: names and limits.
        sockets: to listen on.
        told: called with what a person should know.

    Raises:
        EagleError: an address cannot be had; or the engine broke, and why.
    """
    service = Service(engine, settings)
    running = Running(service, create_app(engine, service=service), told)
    try:
        with running.capture_signals():
            for made in sockets:
                told(_listening(made))
            running.run(sockets)
    finally:
        engine.close(drain=False)
    if engine.broken is not None:
        raise engine.broken


def _listening(made: socket.socket) -> str:
    """Have a socket listen, and return what is said of it."""
    host, port = made.getsockname()[:2]
    try:
        made.listen(_CONNECTIONS)  # several may have reserved a port; only one listens
    except OSError as error:
        raise _unavailable(host, port, error) from error
    shown = f"[{host}]" if ":" in host else host
    return f"serving http://{shown}:{port}/v1 (Ctrl-C ends it)"


def log_to(stream: Any) -> None:
    """Have requests, and what goes wrong, written to a stream, a line of JSON each."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, level in (("eagle.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
