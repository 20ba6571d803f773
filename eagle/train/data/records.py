"""Finds the records of text files: elements of a JSON list, lines of JSON, or the text itself.

Knows files, not what a record means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eagle.errors import DataError

__all__ = ["Record", "json_lines", "json_list", "whole"]

Record = tuple[str, Any]
"""Where it stands, for messages, and what it is."""


def json_list(path: Path, say: Callable[[str], None] = lambda message: None) -> Iterator[Record]:
    """Yield the elements of a JSON list until it ends or breaks off, counted from 0.

    A list that is cut off, as the embedded one is, gives all its whole elements.

    Args:
        path: the file.
        say: is told where a list breaks off.

    Raises:
        DataError: it cannot be read, is no list, or an element is nested too deep.
    """
    text = _read(path)
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{path} is not a JSON list of conversations (use `format: messages`?)")
    position = _skip(text, position + 1)
    number = 0
    while text[position : position + 1] != "]":
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            say(f"{path.name} breaks off in element {number}; the {number:,} before it are used")
            return
        except RecursionError as error:
            raise DataError(f"{path}: element {number} is nested too deep: {error}") from error
        except ValueError as error:  # a number of thousands of digits
            raise DataError(f"{path}: element {number} cannot be read: {error}") from error
        yield f"{path.name}:{number}", record
        number += 1
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a file with one JSON value on each line, counted from 1.

    Raises:
        DataError: it cannot be read, or a line is no JSON.
    """
    try:
        # Lines of the file, not `splitlines`: JSON's strings may hold what that takes for an end.
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise DataError(f"{path}:{number}: not a line of JSON: {error}") from error
                    yield f"{path.name}:{number}", record
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def whole(path: Path) -> Iterator[Record]:
    """Yield a file's whole text as one record, unless there is none.

    Raises:
        DataError: it cannot be read.
    """
    text = _read(path)
    if text.strip():
        yield path.name, {"text": text}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
