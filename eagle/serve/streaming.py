"""A stream's events as bytes, from what came of its requests; knows no connection.

Most say a few words more and nothing else. For those all is written once but the words.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from eagle.decoding import Event, News, Piece
from eagle.errors import CancelledError
from eagle.serve.forms import Form
from eagle.serve.problems import encoded, problem_of
from eagle.serve.requests import Asked

__all__ = ["Stream", "sse"]


def sse(value: Any) -> bytes:
    """Return a value as one server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


class Stream:
    """The answers of one request, piece by piece.

    Args:
        form: how they are written.
        asked: what is answered.
        figures: gives what the last event has besides.
        usage: that has an event of its own.
    """

    def __init__(
        self, form: Form, asked: Asked, figures: Callable[[], dict[str, Any]], *, usage: bool
    ) -> None:
        self._form, self._asked, self._figures = form, asked, figures
        self._usage, self._left = usage, len(asked.handles)
        # With usage, OpenAI has the field in every event, and says in the last what it is.
        self._none: dict[str, Any] = {"usage": None} if usage else {}
        self._opened: set[int] = set()
        self._frames: dict[int, tuple[str, str]] = {}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give what is to be sent, all that there is at a time.

        Raises:
            Problem: what ended the answers, where that was the server's doing.
            EagleError: one failed.
        """
        try:
            with News(self._asked.handles) as news:
                while came := await news.take():
                    if told := self._written(came):
                        yield told
        except CancelledError as error:
            raise self._asked.why or problem_of(error) from error

    def _written(self, came: Sequence[tuple[int, Event]]) -> bytes:
        # In one write: a packet each costs more than what is in it.
        written: list[bytes] = []
        for index, event in came:
            if (
                event.finish_reason
                or event.logprobs is not None
                or index not in self._opened
                or not self._form.plain
            ):
                written += self._whole(index, event)
            elif text := event.text:
                before, behind = self._frames.get(index) or self._frame(index)
                written.append((before + encode_basestring_ascii(text) + behind).encode())
        return b"".join(written)

    def _whole(self, index: int, event: Event) -> list[bytes]:
        form, choices = self._form, []
        if index not in self._opened:
            self._opened.add(index)
            choices.append(form.opening(index))
        choices.append(form.piece(index, event))
        if event.finish_reason:
            self._left -= 1
            choices.append(form.ending(index, event.finish_reason))
        pieces = [form.chunk([choice], **self._none) for choice in choices if choice]
        if not self._left:
            figures = self._figures()
            if self._usage:
                pieces.append(form.chunk([], **figures))
            else:
                pieces[-1]["metrics"] = figures["metrics"]
        return [sse(piece) for piece in pieces]

    def _frame(self, index: int) -> tuple[str, str]:
        """Return what stands before and behind the text of an event that has nothing else."""
        place = secrets.token_hex(16)
        choice = self._form.piece(index, Event(index, (), (Piece(place, drafted=False),)))
        assert choice is not None
        written = sse(self._form.chunk([choice], **self._none)).decode()
        before, _, behind = written.partition(encode_basestring_ascii(place))
        self._frames[index] = before, behind
        return before, behind
