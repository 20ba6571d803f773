"""How a server behaves: addresses, names and limits; knows no request."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

__all__ = ["Settings", "is_loopback"]


@dataclass(frozen=True)
class Settings:
    """What a server is told when it is made.

    Attributes:
        model: the name that clients know the target by; None for the target's own.
        api_key: what clients have to show; None lets everybody in.
        loopback: only this machine can reach it.
        default_tokens: longest answer of a chat that gives no ``max_tokens``.
        max_body: bytes of a request's body, at most.
        max_choices: answers that one request may ask for: prompts times ``n``.
        timeout: seconds that a request may take, waiting for a slot included.
        stall: seconds that a client may take to send its body, or to read what it was sent.
        grace: seconds that requests under way are given when the server is told to end.
    """

    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    loopback: bool = True
    default_tokens: int = 1024
    max_body: int = 4 << 20
    max_choices: int = 128
    timeout: float = 600.0
    stall: float = 30.0
    grace: float = 30.0


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which says nothing of where it leads, even "127.0.0.1.example"
        return False
