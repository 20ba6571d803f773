"""Files of prompts to measure with; knows two layouts and no benchmark by name."""

from __future__ import annotations

import json
from pathlib import Path

from eagle.decoding import half_surrogate
from eagle.errors import DataError

__all__ = ["read_conversations", "read_prompts"]

_MOST = 2**28  # a device never ends


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file; of a conversation, its first turn.

    Args and errors are those of `read_conversations`.
    """
    return [turns[0] for turns in _read(path, every=False)]


def read_conversations(path: Path) -> list[list[str]]:
    """Return what a user says in the conversations of a file, turn by turn.

    Args:
        path: ``.jsonl`` with an object ``{"turns": ["...", ...]}`` on each line, as MT-bench has
            it, or any other text file with one prompt on each line. Empty lines are skipped.

    Raises:
        DataError: it cannot be read, is too long, holds no prompt, or a line is not what it should
            be.
    """
    return _read(path, every=True)


def _read(path: Path, *, every: bool) -> list[list[str]]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
        if len(content) > _MOST:
            raise DataError(f"{path} is longer than the {_MOST:,} bytes that are read")
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    # Not `splitlines`: JSON's strings may hold what that takes for the end of a line.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".jsonl":
        prompts = [_turns(line, f"{path}:{number}", every=every) for number, line in numbered]
    else:
        prompts = [[line.strip()] for _, line in numbered]
    if not prompts:
        raise DataError(f"{path} holds no prompt")
    return prompts


def _turns(line: str, place: str, *, every: bool) -> list[str]:
    try:
        turns = json.loads(line)["turns"]
        if not isinstance(turns, list):
            raise TypeError
        first = turns[0]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f'{place}: should be a JSON object like {{"turns": ["the prompt"]}}'
        ) from error
    found = turns if every else turns[:1]
    for turn in found:
        if not isinstance(turn, str) or not turn.strip():
            which = "the first of its turns" if turn is first else "each of its turns"
            raise DataError(f"{place}: {which} should be a text that is not empty")
        if half_surrogate(turn) is not None:
            raise DataError(f"{place}: holds half of a surrogate pair, which is no text")
    return found
