"""What lies between a connection and an answer: what is counted, and the short way past FastAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from eagle.serve.metrics import Metrics

__all__ = ["Counted", "Direct", "Endpoint", "Shortcut"]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
_App = Callable[[Any, Any, Any], Awaitable[None]]


class Direct(APIRoute):
    """Gives its endpoint the request and nothing else, without a look for what else it might take.

    That look is a tenth of a millisecond on the way to a first token.
    """

    def get_route_handler(self) -> Endpoint:
        """Return the endpoint, which takes requests and gives responses."""
        return self.endpoint


class Shortcut:
    """Answers what is asked all the time by itself, and lets an application answer all else.

    Routing, and layers that wrap all that is received and sent, take as long as whatever else is
    done to open a request. What an endpoint raises is left to whoever is before this.

    Args:
        app: the application, which has the endpoints as routes, too.
        endpoints: of posts, by path.
    """

    def __init__(self, app: _App, endpoints: Mapping[str, Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or (endpoint := self._endpoints.get(scope["path"])) is None
        ):
            await self._app(scope, receive, send)
            return
        scope["answered_at"] = scope["path"]
        answer = await endpoint(Request(scope, receive))
        await answer(scope, receive, send)


class Counted:
    """Counts requests by address and status, of the addresses that there are.

    Who is refused before an address was looked at counts as one who asked for another.
    """

    def __init__(self, app: _App, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request be answered, and count it."""
        status = 499  # as nginx has it: the client left before there was one

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            if scope["type"] == "http":
                path = scope.get("answered_at") or getattr(scope.get("route"), "path", "other")
                self._metrics.requested(path, status)
