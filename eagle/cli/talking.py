"""A conversation with a server: turns go out over HTTP, and answers come as they are streamed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from eagle.cli import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from eagle.plugin import SamplingParams
    from eagle.remote import Server

__all__ = ["Answered", "ask", "refuse_local", "server_of", "show_plainly"]

_OURS = "eagle-decoding"


class Answered:
    """What is known of an answer when it is over.

    Attributes:
        text: all of it.
        figures: in one line; None where it was stopped.
    """

    def __init__(self) -> None:
        self.text = ""
        self.figures: str | None = None


def server_of(url: str) -> tuple[Server, str, bool]:
    """Return a server, its model's name, and whether it is one of ours.

    Raises:
        RemoteError: it does not answer, or has no model.
    """
    from eagle.remote import Server

    server = Server(url)
    model = server.model()
    return server, str(model.get("id", "")), model.get("owned_by") == _OURS


def ask(
    server: Server,
    model: str,
    messages: list[dict[str, str]],
    params: SamplingParams,
    template: dict[str, Any] | None,
    *,
    ours: bool,
    show: Callable[[str, bool | None], None],
    stopped: Callable[[], bool],
) -> Answered:
    """Ask for an answer and show it as it comes.

    Args:
        server: who is asked.
        model: by which name.
        messages: the conversation.
        params: of the answer.
        template: what the chat template is given beside the messages.
        ours: the server tells of each piece who drafted it.
        show: called with a piece and whether it was drafted, None where nobody knows.
        stopped: whether no more is wanted.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stream_options": {"include_usage": True},
    }
    # What not every server knows is only sent where it says something.
    for name in ("top_k", "min_p", "seed", "stop"):
        value = getattr(params, name)
        if value or (name == "seed" and value is not None):  # 0 is a seed like any other
            body[name] = list(value) if name == "stop" else value
    if template:
        body["chat_template_kwargs"] = template
    if ours:
        body["return_pieces"] = True
    last: dict[str, Any] = {}
    answered, began, first = Answered(), time.perf_counter(), None
    events = server.stream("/chat/completions", body)
    for event in events:
        for text, drafted in _pieces(event):
            first = first or time.perf_counter()
            answered.text += text
            show(text, drafted)
        sys.stdout.flush()
        last = {**last, **{key: event[key] for key in ("usage", "metrics") if event.get(key)}}
        if stopped():
            return answered
    seconds = time.perf_counter() - began
    answered.figures = _figures(last, seconds, (first or began) - began)
    return answered


def _pieces(event: dict[str, Any]) -> Iterator[tuple[str, bool | None]]:
    for choice in event.get("choices") or ():
        if "pieces" in choice:
            yield from ((piece["text"], piece["drafted"]) for piece in choice["pieces"])
        elif text := (choice.get("delta") or {}).get("content"):
            yield text, None


def _figures(last: dict[str, Any], seconds: float, first: float) -> str:
    """Return the figures of an answer in one line, as far as the server tells them."""
    parts = []
    if tokens := (last.get("usage") or {}).get("completion_tokens"):
        noun = "token" if tokens == 1 else "tokens"
        parts += [f"{tokens} {noun}", f"{tokens / seconds:.1f} tokens/s"]
    if told := (last.get("metrics") or {}).get("speculative_decoding"):
        parts.append(f"tau {told.get('mean_acceptance_length', 0):.2f}")
    return " · ".join([*parts, f"first text {first:.2f} s"])


def refuse_local(given: dict[str, Any]) -> None:
    """Refuse options that say what is loaded here, where nothing is.

    Raises:
        RequestError: naming the option.
    """
    from eagle.errors import RequestError

    for option, value in given.items():
        if value:
            raise RequestError(
                f"{option} does not go with --server, which has loaded its model already"
            )


def show_plainly(text: str) -> None:
    """Print a piece of an answer without a colour."""
    console.out.print(text, end="", soft_wrap=True, markup=False)
