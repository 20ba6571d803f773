"""Reads conversations and plain texts from files; knows what a record says, not tokens.

How records are found in files is `records`' business, and `tables`' for those of `datasets`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.decoding import half_surrogate
from eagle.errors import DataError
from eagle.train.data import records, tables
from eagle.train.data.records import Record
from eagle.train.spec import SourceSpec

__all__ = ["Conversation", "Passage", "read_sources", "sources_digest"]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""What the roles of the formats are called in chat templates, by their names in lower case."""

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_TALK = '{"messages": [{"role", "content"}]} or {"conversations": [{"from", "value"}]}'
_TEXT = '{"text": "..."}'
_EMPTY = re.compile(r"\A(?:[^\S\n]*\n)+")
_SPACE = re.compile(r"\A[^\S\t\n]\S")
_CALLS = ("tool_calls", "function_call")
_UNUSED_OF_TURNS = (*_CALLS, "reasoning_content", "reasoning", "thinking")
_UNUSED = ("tools", "functions")


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        group: what belongs together in a split: ShareGPT cuts long conversations into pieces
            ``ID_0``, ``ID_1``, ... of which none may be held out while another is trained on.
        messages: role and text of each turn, roles as chat templates call them.
        dropped: what the record has beside those, once for each time.
    """

    group: str
    messages: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A plain text, every token of which is learned from.

    Attributes:
        group: see `Conversation.group`.
        text: the text.
    """

    group: str
    text: str


def read_sources(
    sources: Iterable[SourceSpec],
    locate: Callable[[str], Path] = Path,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[Conversation | Passage]:
    """Yield the conversations and texts of all sources.

    A conversation may come out without any assistant turn; whoever makes tokens counts those.

    Args:
        sources: what to read.
        locate: makes a path of a file's name.
        say: is told of a file that breaks off.

    Raises:
        DataError: a file cannot be read, is not in its format, or holds no conversation.
        AssetError: an embedded dataset cannot be fetched.
    """
    for source in sources:
        empty = True
        for place, record in _records(source, locate, say):
            empty = False
            yield _item(record, place, source.format)
        if empty:
            raise DataError(f"{source.path} holds no conversation and no text")


def sources_digest(
    sources: Iterable[SourceSpec], locate: Callable[[str], Path] = Path
) -> str | None:
    """Return a digest of what sources hold, wherever they lie; None where a file is not there.

    A dataset that is embedded or on the Hub is told by its name.

    Raises:
        DataError: a file cannot be read.
    """
    from eagle.assets import DATASETS

    state = hashlib.sha256()
    for source in sources:
        state.update(source.model_dump_json(exclude={"path"}).encode())
        path = locate(source.path)
        if source.path not in DATASETS and path.exists():
            try:
                for file in tables.files_below(path) if path.is_dir() else [path]:
                    state.update(str(file.relative_to(path)).encode(errors="surrogateescape"))
                    with file.open("rb") as content:
                        state.update(hashlib.file_digest(content, "sha256").digest())
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        elif source.path in DATASETS or _on_hub(source, path):
            state.update(source.path.encode())
        else:
            return None
    return state.hexdigest()


def _on_hub(source: SourceSpec, path: Path) -> bool:
    """Whether a source that is no file here names a dataset of the Hub."""
    local = source.format == "auto" and path.suffix in (*tables.READERS, ".json")
    named = _HUB.fullmatch(source.path) is not None
    return source.format in ("auto", "dataset") and not local and named


def _records(
    source: SourceSpec, locate: Callable[[str], Path], say: Callable[[str], None]
) -> Iterator[Record]:
    from eagle.assets import DATASETS, dataset_file

    if source.path in DATASETS:
        return records.json_list(dataset_file(source.path), say)
    path = locate(source.path)
    if path.is_dir():
        return tables.folder(path, source.split)
    if path.is_file():
        return _file(path, source.format, say)
    if _on_hub(source, path):
        return tables.hub(source)
    raise DataError(
        f"data.sources: there is no file {path} (embedded datasets: {', '.join(DATASETS)}; a "
        "dataset of the Hugging Face Hub is OWNER/NAME)"
    )


def _file(path: Path, form: str, say: Callable[[str], None]) -> Iterator[Record]:
    table = tables.READERS.get(path.suffix)
    if form == "sharegpt":
        return records.json_list(path, say)
    if form == "messages":
        return records.json_lines(path)
    if table is not None and (form != "text" or path.suffix != ".txt"):
        return table(path)
    if form == "text":
        return records.whole(path)
    if form == "dataset":
        raise DataError(f"{path}: a dataset's files end with {', '.join(tables.READERS)}")
    return records.json_list(path, say)


def _item(record: Any, place: str, form: str) -> Conversation | Passage:
    """Make a conversation or a text of a record."""
    wanted = {"text": _TEXT, "auto": f"{_TALK} or {_TEXT}", "dataset": f"{_TALK} or {_TEXT}"}
    mistake = DataError(f"{place}: not a conversation: it should be {wanted.get(form, _TALK)}")
    if not isinstance(record, Mapping):
        raise mistake
    name = str(record.get("id") or place)
    _check_text(name, place)
    stem, _, piece = name.rpartition("_")
    group = stem if stem and piece.isdigit() else name
    given = [record[key] for key in ("messages", "conversations") if record.get(key) is not None]
    turns = given[0] if given and form != "text" else None
    if turns is None and form in wanted and isinstance(record.get("text"), str):
        _check_text(record["text"], place)
        return Passage(group, record["text"])
    try:
        listed = _listed(turns)
        named = [_turn(turn) for turn in listed]
    except (TypeError, KeyError, ValueError) as error:
        raise mistake from error
    dropped = [f"`{key}` of turns" for turn in listed for key in _UNUSED_OF_TURNS if turn.get(key)]
    dropped += [f"`{key}` of records" for key in _UNUSED if record.get(key)]
    if record.get("system"):
        if not isinstance(record["system"], str):
            raise mistake
        if any(role == "system" for role, _ in named):
            dropped.append("`system` of records whose turns have one")
        else:
            named.insert(0, ("system", _trimmed(record["system"])))
    for role, said in named:
        _check_text(role + said, place)
    # Turns before the first question are left out.
    first = next((i for i, (role, _) in enumerate(named) if role == "user"), len(named))
    kept = [turn for turn in named[:first] if turn[0] == "system"] + named[first:]
    dropped += ["turns before the first question"] * (len(named) - len(kept))
    return Conversation(group, tuple(kept), tuple(dropped))


def _check_text(text: str, place: str) -> None:
    if half_surrogate(text) is not None:
        raise DataError(f"{place}: holds half of a surrogate pair, which is no text")


def _listed(turns: Any) -> list[Any]:
    """Return turns one by one; `datasets` also keeps them as one list for each key."""
    if isinstance(turns, Mapping):
        return [
            dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)
        ]
    return list(turns)


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    role = turn["role"] if "role" in turn else turn["from"]
    calls = any(turn.get(key) for key in _CALLS)  # which may stand without a word
    said = turn["content"] if "content" in turn else turn.get("value") if calls else turn["value"]
    if said is None:
        said = ""
    if isinstance(said, list):
        said = "".join(part["text"] for part in said)
    if not isinstance(said, str) or not isinstance(role, str):
        raise TypeError(said)
    return ROLES.get(role.lower(), role), _trimmed(said)


def _trimmed(text: str) -> str:
    """Return a text without empty lines around it, the indent of its first line kept.

    A single space there is no indent, but what datasets have between a name and what it says.
    """
    body = _EMPTY.sub("", text.rstrip())
    return body[1:] if _SPACE.match(body) else body
