"""Requests as bytes, long ones, and what holds an engine's thread."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

LONG = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}


class Gate:
    """A logits processor that holds the engine's thread until it is opened."""

    any_prefix = True

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, scores):
        self.entered.set()
        assert self.opened.wait(60)
        return scores


def sent(site, *pieces):
    """Return what comes back on a connection of its own until it is closed, and how much went."""
    got, gone = b"", 0
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as raw:
        with suppress(OSError):
            for piece in pieces:
                raw.sendall(piece)
                gone += len(piece)
        with suppress(OSError):
            while piece := raw.recv(1 << 16):
                got += piece
    return got, gone


def head(path="/v1/completions", version="1.1", **named):
    """Return a request's head, up to its body."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    lines = ["Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join([f"POST {path} HTTP/{version}", *lines, "\r\n"]).encode()
