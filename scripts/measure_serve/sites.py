"""Servers that run for the length of a block, each in a thread of its own; measures nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eagle.decoding import Engine
from eagle.serve import Running, Service, Settings, create_app, reserved
from measure_serve.floors import Bare, hello

__all__ = ["bare", "frozen", "greeting", "serving", "spent_by_servers"]

_NAME = "server-of-measure-serve"


def spent_by_servers() -> float:
    """Return seconds of processor time of all servers' threads, those that take requests in too.

    What a thread took that has ended is not in it. Linux alone tells.
    """
    nanoseconds = 0
    for thread in threading.enumerate():
        if thread.name.startswith((_NAME, "eagle-intake")):
            path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            nanoseconds += int(path.read_text().split()[0])
    return nanoseconds / 1e9


@contextmanager
def frozen() -> Iterator[None]:
    """Keep the collector from what is loaded, as `eagle serve` does.

    Otherwise it walks over a million objects every few thousand events, for a third of a second.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def serving(engine: Engine) -> Iterator[int]:
    """Have `eagle serve`'s server before an engine; gives its port."""
    service = Service(engine, Settings())
    with _running(Running(service, create_app(engine, service=service), print)) as port:
        yield port


@contextmanager
def greeting(engine: Engine) -> Iterator[int]:
    """Have a server that says a word and asks no engine; gives its port."""
    with _running(Running(Service(engine, Settings()), hello(), print)) as port:
        yield port


@contextmanager
def bare(engine: Engine) -> Iterator[int]:
    """Have an engine behind a socket, in the same kind of event loop; gives its port."""
    listening = reserved("127.0.0.1", 0)
    listening.listen(100)
    factory = Running(Service(engine, Settings()), hello(), print).config.get_loop_factory()
    ended = threading.Event()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(lambda: Bare(engine), sock=listening):
            await asyncio.to_thread(ended.wait)

    def run() -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name=_NAME, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        ended.set()
        thread.join()


@contextmanager
def _running(running: Running) -> Iterator[int]:
    listening = reserved("127.0.0.1", 0)
    listening.listen(1024)
    thread = threading.Thread(target=running.run, name=_NAME, args=([listening],), daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()
