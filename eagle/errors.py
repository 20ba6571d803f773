"""Every error that this library raises on purpose, how long it may be; knows no other module.

    EagleError
    ├── SpecError               a decoder or training spec is not valid
    │   └── IncompatibleError   its parts are valid, but not together
    ├── PluginError             a plug-in is broken, ambiguous or misbehaves
    │   └── UnknownStrategyError  nobody provides that name
    ├── TargetError             the target model cannot be loaded or served
    │   └── PartedError         processes that hold it were given, or decided, different things
    ├── CheckpointError         a draft head's files do not fit or are damaged
    ├── CompileError            a target's pass cannot be compiled, or what was is not the pass
    ├── AssetError              a file could not be fetched, verified or stored
    ├── RequestError            a prompt or its sampling parameters are not valid
    │   ├── QueueFullError      an engine has as many requests waiting as it takes
    │   └── ClosedError         an engine was closed, or has broken, before it was asked
    ├── RemoteError             a server that was asked does not answer, or refuses
    ├── CancelledError          a request was cancelled before it was answered
    ├── DataError               training or evaluation data cannot be used
    ├── CopyError               what exists once was to be copied or pickled; a TypeError, too
    └── NumericalError          the target or the head produced NaN

A message says what was wrong, where, and what would have been right, in three lines at most: what a
user gave may be of any length, and so may what another library says of it.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

__all__ = [
    "AssetError",
    "CancelledError",
    "CheckpointError",
    "ClosedError",
    "CompileError",
    "CopyError",
    "DataError",
    "EagleError",
    "IncompatibleError",
    "NumericalError",
    "PartedError",
    "PluginError",
    "QueueFullError",
    "RemoteError",
    "RequestError",
    "SpecError",
    "TargetError",
    "UnknownStrategyError",
    "again",
    "brief",
    "clipped",
    "listed",
    "nearest",
    "reason",
]

_LINES, _LINE = 3, 1500  # of a message; of a line, in characters
# How huggingface_hub's checked dataclasses begin, of which transformers' configurations are some.
_CHECKED = re.compile(r"^(Class v|V)alidation error for (validator|field) '\w+': (\w+: )?")


class EagleError(Exception):
    """Base of all errors raised by this library; the command line exits with status 2 on it.

    Attributes:
        results: if `Decoder.generate` raised it after some of its prompts were answered, the
            `Result` of each of those, by the prompt's index; otherwise empty.
    """

    results: Mapping[int, Any] = MappingProxyType({})

    def __init__(self, *details: Any) -> None:
        first, rest = details[:1], details[1:]
        super().__init__(*(_bounded(d) if isinstance(d, str) else d for d in first), *rest)


class SpecError(EagleError):
    """A decoder or training spec is not valid: not YAML, an unknown key, a wrong type or value."""


class IncompatibleError(SpecError):
    """A spec combines strategies whose declarations exclude each other."""


class PluginError(EagleError):
    """A plug-in failed to import, claims a taken name, misspells a hook or breaks its contract."""


class UnknownStrategyError(PluginError, SpecError):
    """A spec names a strategy that no installed plug-in provides."""


class TargetError(EagleError):
    """The target model cannot be found, loaded, or served without changing what it says."""


class PartedError(TargetError):
    """Processes that hold a target were given, or decided, different things; all raise it."""


class CheckpointError(EagleError):
    """A draft head's checkpoint is missing, damaged, unsafe, or of another shape."""


class CompileError(EagleError):
    """A target's pass cannot be compiled ahead of time here, or what was compiled is not it."""


class AssetError(EagleError):
    """A file could not be fetched, does not match its digest, or could not be stored."""


class RequestError(EagleError):
    """A prompt or a sampling parameter is not valid, or exceeds the decoder's capacity."""


class QueueFullError(RequestError):
    """An engine has as many requests waiting as it takes; ask again when some were answered."""


class ClosedError(RequestError):
    """A request came after its engine was closed, or had broken."""


class CancelledError(EagleError):
    """A request was cancelled before it was answered, so there is no result."""


class RemoteError(EagleError):
    """A server that was asked over HTTP does not answer, refuses, or answers what is no answer.

    Attributes:
        status: of HTTP, where it refused.
        param: the field that it refused, where it says so.
    """

    def __init__(self, message: str, status: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


class DataError(EagleError):
    """Training or evaluation data cannot be used."""


class CopyError(EagleError, TypeError):
    """A decoder, its target or its caches were to be copied, pickled or sent to a process."""


class NumericalError(EagleError):
    """The target or the draft head produced NaN; no token can be chosen from that."""


def again(error: Exception) -> Exception:
    """Return an error for one more who is to raise it: a traceback and results are one's own."""
    if not isinstance(error, EagleError):
        return error
    try:
        one = copy.copy(error)
    except Exception:  # a plug-in's own kind, which cannot be copied
        return error
    one.__cause__ = error.__cause__
    return one.with_traceback(error.__traceback__)


def brief(value: object) -> str:
    """Return what a value looks like, in one line of at most 80 characters.

    >>> brief(["a", "b"])
    "['a', 'b']"
    """
    return clipped(" ".join(repr(value).split()), 80)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of *known*, or an empty string.

    >>> nearest("statc", ["static", "chain"])
    " Did you mean 'static'?"
    """
    if len(name) > _LINE:  # compared letter by letter
        return ""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def clipped(text: str, most: int = 60) -> str:
    """Return a text with its middle left out where it is longer than *most* characters.

    >>> clipped("a=" + "[" * 3000 + "1", 20)
    'a=[[[[[[[ ... [[[[[1'
    """
    if len(text) <= most:
        return text
    tail = (most - 5) * 2 // 5
    return f"{text[: most - 5 - tail]} ... {text[len(text) - tail :]}"


def listed(things: Sequence[Any], most: int = 5) -> str:
    """Return things with commas between them: the first few, and how many more there are.

    >>> listed(range(3000), 3)
    '0, 1, 2 and 2,997 more'
    """
    shown = ", ".join(clipped(str(thing)) for thing in things[:most])
    more = len(things) - most
    return f"{shown} and {more:,} more" if more > 0 else shown


def reason(error: BaseException, most: int = 300) -> str:
    """Return what another library's exception says, in one line; its class if that says nothing.

    That is its first line, and the one that is announced there by a colon.

    >>> reason(ValueError("no such thing\\n\\nTraceback ..."))
    'no such thing'
    >>> reason(KeyError("model"))
    "KeyError: 'model'"
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    said = _CHECKED.sub("", said)
    if " " not in said:  # a key, a number or nothing, which its class explains
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    return clipped(said, most)


def _bounded(message: str) -> str:
    lines = message.split("\n")
    if len(lines) > _LINES:
        more = len(lines) - _LINES + 1
        lines = [*lines[: _LINES - 1], f"and {more:,} lines more"]
    return "\n".join(clipped(line, _LINE) for line in lines)
