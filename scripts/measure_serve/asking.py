"""Clients that read sockets themselves, in a process of their own; knows no engine.

A library of a client's takes a millisecond or more of its own. This one sends what is made before
the clock starts, and looks for the first event's first bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty
from typing import Any

__all__ = ["REST", "Order", "Taken", "apart", "clients", "opened_to", "request_of", "told"]

REST = 0.03  # seconds before a request, by whichever way: none begins where another just ended


@dataclass(frozen=True)
class Order:
    """What is to be asked.

    Attributes:
        port: whom.
        prompts: what, all at once.
        tokens: of each answer.
        keep: on the connection of the order before, if there is one.
    """

    port: int
    prompts: tuple[str, ...]
    tokens: int
    keep: bool = False


@dataclass(frozen=True)
class Taken:
    """What it took; times are of `time.perf_counter`, which on Linux all processes share.

    Attributes:
        began: when asking began, connecting included.
        first: when the first event of the first prompt had come.
        ended: when all was read.
        spent: seconds of processor time of whoever asked.
    """

    began: float
    first: float
    ended: float
    spent: float


@contextmanager
def apart(asking: Callable[[Any, Any], None]) -> Iterator[Callable[[Any], Any]]:
    """Have clients in a process of their own for the length of a block.

    Args:
        asking: what they do: take orders from a queue until None comes, and put what they took.

    Yields:
        What gives an order and returns what was taken. It raises `RuntimeError` where none came.
    """
    spawn = multiprocessing.get_context("spawn")
    orders, results = spawn.Queue(), spawn.Queue()
    process = spawn.Process(target=asking, args=(orders, results), daemon=True)
    process.start()

    def ask(order: Any) -> Any:
        orders.put(order)
        while True:
            try:
                return results.get(timeout=1)
            except Empty:
                if not process.is_alive():
                    raise RuntimeError("the clients have failed; see above") from None

    try:
        yield ask
        orders.put(None)
        process.join()
    finally:
        process.terminate()


def clients(orders: Any, results: Any) -> None:
    """Ask as is ordered, until there are no orders."""
    kept: dict[int, socket.socket] = {}
    while (order := orders.get()) is not None:
        if order.keep and order.port not in kept:  # an idle connection is closed after a while
            kept[order.port] = opened_to(order.port)
            told(kept[order.port], request_of(order.prompts[0], order.tokens))
        time.sleep(REST)
        results.put(_taken(order, kept.get(order.port) if order.keep else None))
    for connection in kept.values():
        connection.close()


def _taken(order: Order, kept: socket.socket | None) -> Taken:
    requests = [request_of(prompt, order.tokens) for prompt in order.prompts]
    firsts = [0.0] * len(requests)

    def one(place: int) -> None:
        connection = kept or opened_to(order.port)
        firsts[place], _ = told(connection, requests[place])
        if connection is not kept:
            connection.close()

    spent, began = time.process_time(), time.perf_counter()
    if len(requests) == 1:
        one(0)
    else:
        threads = [threading.Thread(target=one, args=(place,)) for place in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return Taken(began, firsts[0], time.perf_counter(), time.process_time() - spent)


def opened_to(port: int) -> socket.socket:
    """Return a connection that sends at once."""
    made = socket.create_connection(("127.0.0.1", port), timeout=300)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def request_of(prompt: str, tokens: int, **more: Any) -> bytes:
    """Return what is sent for a streamed chat of one prompt."""
    talk = [{"role": "user", "content": prompt}]
    asked = {"messages": talk, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({**asked, "stream": True, **more}).encode()
    head = "Host: localhost\r\nContent-Type: application/json"
    length = f"Content-Length: {len(body)}"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n{length}\r\n\r\n".encode() + body


def told(by: socket.socket, request: bytes) -> tuple[float, bytes]:
    """Ask, and read a stream to its end.

    Returns:
        When its first event had come, and all that came.

    Raises:
        RuntimeError: something else came.
    """
    by.sendall(request)
    first, got = 0.0, bytearray()
    while not got.endswith(b"\r\n0\r\n\r\n"):
        piece = by.recv(1 << 16)
        got += piece
        if not piece or not got.startswith(b"HTTP/1.1 200"[: len(got)]):
            raise RuntimeError(f"no stream came: {bytes(got[:1000])!r}")
        if not first and b"data: " in got:
            first = time.perf_counter()
    return first, bytes(got)
