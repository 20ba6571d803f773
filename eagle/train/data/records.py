"""Finds the records of text files: elements of a JSON list, lines of JSON, or the text itself.

Knows files, not what a record means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eagle.errors import DataError

__all__ = ["Record", "json_lines", "json_list", "name_of", "whole"]

Record = tuple[str, Any]
"""Where it stands, for messages, and what it is."""

_LONGEST = len("-Infinity")  # of JSON's words, one of which may be cut off


def name_of(path: Path) -> str:
    """Return a file's name as text that can be written down, whatever bytes it is of."""
    return path.name.encode(errors="backslashreplace").decode()


def json_list(path: Path, say: Callable[[str], None] = lambda message: None) -> Iterator[Record]:
    """Yield the elements of a JSON list until it ends or breaks off, counted from 0.

    A list that is cut off, as the embedded one is, gives all its whole elements.

    Args:
        path: the file.
        say: is told where a list breaks off.

    Raises:
        DataError: it cannot be read, is no list, or an element is nested too deep or no JSON
            while others follow; or there is more behind the list.
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
        except json.JSONDecodeError as error:
            if _goes_on(text, error):
                raise DataError(
                    f"{path}:{error.lineno}: element {number} is not JSON: {error.msg}"
                ) from error
            say(
                f"{name_of(path)} breaks off in element {number}; the {number:,} before it are used"
            )
            return
        except RecursionError as error:
            raise DataError(f"{path}: element {number} is nested too deep: {error}") from error
        except ValueError as error:  # a number of thousands of digits
            raise DataError(f"{path}: element {number} cannot be read: {error}") from error
        yield f"{name_of(path)}:{number}", record
        number += 1
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
    end = _skip(text, position + 1)
    if end < len(text):
        raise DataError(
            f"{path}:{text.count(chr(10), 0, end) + 1}: there is more behind the list; put all "
            "conversations into one list, or one on each line of a .jsonl file"
        )


def _goes_on(text: str, error: json.JSONDecodeError) -> bool:
    """Whether a mistake is none that the end of the file made: nothing behind it could mend it."""
    cut = error.msg.startswith("Unterminated string") or len(text) - error.pos < _LONGEST
    return not cut


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
                        # Python's own line and column are counted from where this line begins.
                        why = getattr(error, "msg", error)
                        raise DataError(f"{path}:{number}: not a line of JSON: {why}") from error
                    yield f"{name_of(path)}:{number}", record
    except OSError as error:
        raise _unread(path, error) from error
    except UnicodeDecodeError as error:  # of a block of the file, so that it knows no line
        raise DataError(_no_text(path, *_undecoded(path))) from error


def whole(path: Path) -> Iterator[Record]:
    """Yield a file's whole text as one record, unless there is none.

    Raises:
        DataError: it cannot be read.
    """
    text = _read(path)
    if text.strip():
        yield name_of(path), {"text": text}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except OSError as error:
        raise _unread(path, error) from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        raise DataError(
            _no_text(path, before.count(b"\n") + 1, error.object[error.start])
        ) from error


def _undecoded(path: Path) -> tuple[int, int]:
    """Return the line of the first byte that is not UTF-8, and that byte."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    return 0, 0  # it was written meanwhile


def _no_text(path: Path, line: int, byte: int) -> str:
    return f"{path}:{line}: cannot be read: the byte 0x{byte:02x} there is not UTF-8 text"


def _unread(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}")
