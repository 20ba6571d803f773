"""What goes wrong with a request, in OpenAI's form of an error; says nothing of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from eagle.errors import CancelledError, ClosedError, QueueFullError, RequestError, clipped

__all__ = ["Problem", "encoded", "problem_of", "response", "shut_down"]

_WRITER = json.JSONEncoder(separators=(",", ":"))  # `json.dumps` makes one each time
_INVALID, _SERVER = "invalid_request_error", "server_error"


class Problem(Exception):  # noqa: N818 - what OpenAI's form has inside its `error`
    """What a client is told instead of an answer.

    Attributes:
        status: of HTTP.
        message: one sentence.
        param: the field that is wrong, if one is.
        code: a word for programs, if there is one.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = clipped(message, 1000)
        self.kind = kind or (_INVALID if status < 500 else _SERVER)
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        told = {"message": self.message, "type": self.kind}
        return {"error": {**told, "param": self.param, "code": self.code}}


def problem_of(error: Exception, *, wait: int = 1, param: str | None = None) -> Problem:
    """Return what a client is told of an exception.

    Args:
        error: any.
        wait: seconds after which a full queue may be asked again.
        param: the field that an error of the request's own is about.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, QueueFullError):
        text = "too many requests are waiting; ask again later"
        return Problem(
            429,
            text,
            kind="rate_limit_error",
            code="queue_full",
            headers={"retry-after": str(wait)},
        )
    if isinstance(error, ClosedError):
        return Problem(503, "the server takes no more requests", code="closing")
    if isinstance(error, RequestError):
        return Problem(400, str(error), param=param)
    if isinstance(error, CancelledError):
        return Problem(503, "the request was cancelled", code="cancelled")
    # Whatever else there is may name files and modules, which are nobody's business.
    return Problem(500, "the request failed; the server's log says why, under the request's id")


def shut_down() -> Problem:
    """Return what those are told whom the server's end cuts off."""
    return Problem(503, "the server was shut down before the answer", code="closing")


def encoded(value: Any) -> bytes:
    """Return JSON in ASCII, which also holds halves of surrogate pairs that a client sent."""
    return _WRITER.encode(value).encode()


def response(problem: Problem) -> Response:
    """Return an error as an HTTP response."""
    return Response(
        encoded(problem.body),
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/json",
    )
