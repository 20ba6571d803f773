"""Reads conversations from files; knows file formats, not tokens or templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.errors import DataError
from eagle.train.config import SourceSpec

__all__ = ["Conversation", "read_sources"]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""What the roles of the formats are called in chat templates."""


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        group: what belongs together in a split: ShareGPT cuts long conversations into pieces
            ``ID_0``, ``ID_1``, ... of which none may be held out while another is trained on.
        messages: role and text of each turn, roles as chat templates call them.
    """

    group: str
    messages: tuple[tuple[str, str], ...]


def read_sources(
    sources: Iterable[SourceSpec], locate: Callable[[str], Path] = Path
) -> Iterator[Conversation]:
    """Yield the conversations of all sources.

    A conversation may come out without any assistant turn; whoever makes tokens counts those.

    Args:
        sources: what to read.
        locate: makes a path of a file's name.

    Raises:
        DataError: a file cannot be read, is not in its format, or holds no conversation.
        AssetError: an embedded dataset cannot be fetched.
    """
    for source in sources:
        path = _path(source.path, locate)
        sharegpt = source.format == "sharegpt" or (
            source.format == "auto" and path.suffix != ".jsonl"
        )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        records = _objects(text, path) if sharegpt else _lines(text, path)
        empty = True
        for number, record in enumerate(records):
            empty = False
            yield _conversation(record, f"{path.name}:{number}", path)
        if empty:
            raise DataError(f"{path} holds no conversation")


def _path(name: str, locate: Callable[[str], Path]) -> Path:
    from eagle.assets import DATASETS, dataset_file

    if name in DATASETS:
        return dataset_file(name)
    path = locate(name)
    if not path.is_file():
        raise DataError(
            f"data.sources: there is no file {path} (embedded datasets: {', '.join(DATASETS)})"
        )
    return path


def _objects(text: str, path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list until it ends or breaks off.

    A list that is cut off, as the embedded one is, gives all its whole elements.
    """
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{path} is not a JSON list of conversations (use `format: messages`?)")
    position = _skip(text, position + 1)
    while position < len(text) and text[position] != "]":
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            return
        yield record
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _lines(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not a line of JSON: {error}") from error


def _conversation(record: Any, place: str, path: Path) -> Conversation:
    """Make a conversation of a record; turns before the first question are left out."""
    try:
        if "messages" in record:
            turns = [(turn["role"], turn["content"]) for turn in record["messages"]]
        else:
            turns = [(turn["from"], turn["value"]) for turn in record["conversations"]]
        named = [(ROLES.get(role, role), str(text).strip()) for role, text in turns]
    except (TypeError, KeyError) as error:
        raise DataError(
            f'{place}: not a conversation: it should be {{"messages": [{{"role", "content"}}]}} '
            f'or {{"conversations": [{{"from", "value"}}]}}'
        ) from error
    first = next((i for i, (role, _) in enumerate(named) if role == "user"), len(named))
    kept = [turn for turn in named[:first] if turn[0] == "system"] + named[first:]
    name = str(record.get("id", place))
    stem, _, piece = name.rpartition("_")
    return Conversation(stem if stem and piece.isdigit() else name, tuple(kept))
