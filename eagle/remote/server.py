"""Asking a server over HTTP, whole or as a stream, and what it means when it does not answer."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from eagle.errors import RemoteError, clipped, reason

__all__ = ["Server"]

_WHOLE = re.compile("[!-~]+")  # spaces and codes would part a request
_LINE = 1 << 20  # bytes of an event, at most


class Server:
    """An OpenAI-compatible server.

    Args:
        url: as in ``http://127.0.0.1:8000`` or ``https://example.org/v1``.
        key: its API key; by default that of ``EAGLE_API_KEY`` or ``OPENAI_API_KEY``.
        timeout: seconds that it may be silent.

    Raises:
        RemoteError: the URL is none.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 600.0) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise RemoteError(f"{clipped(url)!r} is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host or not _WHOLE.fullmatch(url):
            raise RemoteError(
                f"a server is given as in http://127.0.0.1:8000, not as {clipped(url)!r}"
            )
        self.url, self._secure, self._host, self._port = url, parts.scheme == "https", host, port
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/v1") else f"{path}/v1"
        self._key = key or os.environ.get("EAGLE_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._timeout = timeout

    def model(self) -> dict[str, Any]:
        """Return the first model that it has; its name is its ``id``.

        Raises:
            RemoteError: it does not say, or has none.
        """
        found = self.get("/models").get("data")
        if not isinstance(found, list) or not found or not isinstance(found[0], dict):
            raise RemoteError(f"{self.url} lists no model")
        return dict(found[0])

    def get(self, path: str) -> dict[str, Any]:
        """Return what stands at a path behind ``/v1``.

        Raises:
            RemoteError: it cannot be reached, or answers with an error.
        """
        with self._asked("GET", path, None) as response:
            return self._object(response.read())

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a body and return the answer; see `get` for errors."""
        with self._asked("POST", path, body) as response:
            return self._object(response.read())

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a body and give the events of the answer as they come; see `get` for errors."""
        with self._asked("POST", path, {**body, "stream": True}) as response:
            while line := response.readline(_LINE):
                text = line.strip()
                if text == b"data: [DONE]":
                    return
                if text.startswith(b"data:"):
                    event = self._object(text[5:])
                    if isinstance(error := event.get("error"), dict):
                        raise RemoteError(f"{self.url}: {clipped(str(error.get('message')), 500)}")
                    yield event
        raise RemoteError(f"{self.url} left in the middle of its answer")

    @contextmanager
    def _asked(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        headers = {"accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, sent, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response.status, response.read(_LINE))
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"{self.url} does not answer: {reason(error)}") from error
        finally:
            connection.close()

    def _refusal(self, status: int, body: bytes) -> RemoteError:
        try:
            error = json.loads(body)["error"]
            text, param = str(error["message"]), error.get("param")
        except (ValueError, KeyError, TypeError):
            text, param = body[:200].decode("utf-8", "replace") or "no reason given", None
        told = f"{self.url} answers {status}: {clipped(text, 500)}"
        return RemoteError(told, status, param)

    def _object(self, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except ValueError as error:
            raise RemoteError(f"{self.url} answers with what is no JSON") from error
        if not isinstance(found, dict):
            raise RemoteError(f"{self.url} answers with JSON that is no object")
        return found
