"""What is wrong with a user's values, in sentences: knows pydantic's errors, not files or lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from eagle.errors import listed, nearest

__all__ = ["KeyPath", "explain", "explain_value"]

KeyPath = tuple[str | int, ...]
"""Where a value stands in a document: keys of mappings and indices of lists."""

_OURS = {
    "int_parsing": "should be a valid integer",
    "int_parsing_size": "should be a valid integer",
    "int_from_float": "should be a valid integer",
    "float_parsing": "should be a valid number",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
}
"""By pydantic's type of error, what is said where its own message tells of parsing or of Python."""

_SHORT = 80  # characters of a value that is shown
_SHOWN = 3  # keys of which a sentence is made; of more, a few names and their number


def explain(
    error: ValidationError,
    model: type[BaseModel],
    data: Mapping[str, Any],
    prefix: KeyPath = (),
) -> dict[KeyPath, str]:
    """Return one sentence for each of the first few keys that are wrong.

    Args:
        error: what pydantic raised.
        model: the model that was asked for.
        data: what it was given.
        prefix: key path of *data*, for the names of further keys.

    Returns:
        Sentences by key path; the alternatives of a union are joined into one. Where more keys are
        wrong, the last sentence is followed by how many.
    """
    found: dict[KeyPath, list[Any]] = {}
    unions: set[KeyPath] = set()
    for item in error.errors(include_url=False):
        path, tagged = _key_path(item["loc"], item["type"], data)
        if tagged:
            unions.add(path)
        found.setdefault(path, []).append(item)
    # A branch of a union that failed deeper down was the one that was meant.
    if unions:
        above = {path[:length] for path in found for length in range(len(path))}
        hidden = unions & above
        found = {path: items for path, items in found.items() if path not in hidden}
    told = {
        path: _join(
            list(dict.fromkeys(_explain(item, path, model) for item in found[path])),
            _value(data, path),
        )
        for path in list(found)[:_SHOWN]
    }
    if further := list(found)[_SHOWN:]:
        names = [".".join(map(str, prefix + path)) for path in further[:_SHOWN]]
        # Only as many names are made as are told; the others are counted.
        listing = listed([*names, *further[_SHOWN:]], _SHOWN)
        last = next(reversed(told))
        told[last] = f"{told[last].rstrip('.')}. {len(further):,} more are wrong: {listing}"
    return told


def explain_value(error: ValidationError) -> str:
    """Return one sentence for a value that stands by itself, under no key."""
    items = error.errors(include_url=False)
    return _join(list(dict.fromkeys(map(_sentence, items))), items[0]["input"])


def _key_path(loc: KeyPath, kind: str, data: Any) -> tuple[KeyPath, bool]:
    """Return the keys in a pydantic location, and whether it also names branches of a union."""
    path: list[str | int] = []
    tagged = False
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        # Looking for a branch's name among indices would compare it with each of them.
        indexed = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if indexed or (isinstance(data, dict) and part in data):
            data = data[part]
        elif not (last and kind == "missing"):
            tagged = True
            continue
        path.append(part)
    return tuple(path), tagged


def _explain(item: Any, path: KeyPath, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        keys = f" Known keys: {', '.join(known)}." if known else " No key is known here."
        return f"unknown key.{nearest(str(path[-1]), known)}{keys}"
    if item["type"] == "missing":
        return "is required but not given"
    return _sentence(item)


def _sentence(item: Any) -> str:
    if item["type"] in _OURS:
        return _OURS[item["type"]]
    if item["type"] in ("string_too_short", "too_short") and item["ctx"]["min_length"] == 1:
        return "should not be empty"
    message = str(item["msg"])
    for theirs, ours in (("an object", "a mapping"), ("valid array", "valid list")):
        message = message.replace(theirs, ours)  # the user wrote YAML, not JSON
    if item["type"] in ("value_error", "assertion_error"):
        return message.partition(", ")[2]
    return re.sub(r"^\w+ should", "should", message).replace(" after validation", "")


def _join(sentences: list[str], value: Any) -> str:
    if any(", not " in text or not text.startswith("should be ") for text in sentences):
        return "; ".join(sentences)
    wanted = [text.removeprefix("should be ") for text in sentences]
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) < _SHORT else "this"
    quoted = re.findall(r"'([^']*)'", " ".join(wanted))
    hint = nearest(value, quoted) if isinstance(value, str) else ""
    return f"should be {' or '.join(wanted)}, not {shown}.{hint}"


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        if part not in (range(len(data)) if isinstance(data, list) else data):
            return None
        data = data[part]
    return data


def _fields(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that are known at a path, as far as plain nested models tell."""
    for part in path:
        info = model.model_fields.get(str(part))
        annotation = info.annotation if info else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [info.alias or name for name, info in model.model_fields.items()]
