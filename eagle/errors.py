"""Every error that this library raises on purpose; it knows no other module.

    EagleError
    ├── SpecError               a decoder or training spec is not valid
    │   └── IncompatibleError   its parts are valid, but not together
    ├── PluginError             a plug-in is broken, ambiguous or misbehaves
    │   └── UnknownStrategyError  nobody provides that name
    ├── TargetError             the target model cannot be loaded or served
    ├── CheckpointError         a draft head's files do not fit or are damaged
    ├── CompileError            a target's pass cannot be compiled, or what was is not the pass
    ├── AssetError              a file could not be fetched, verified or stored
    ├── RequestError            a prompt or its sampling parameters are not valid
    ├── DataError               training or evaluation data cannot be used
    ├── CopyError               what exists once was to be copied or pickled; a TypeError, too
    └── NumericalError          the target or the head produced NaN

A message says what was wrong, where, and what would have been right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

__all__ = [
    "AssetError",
    "CheckpointError",
    "CompileError",
    "CopyError",
    "DataError",
    "EagleError",
    "IncompatibleError",
    "NumericalError",
    "PluginError",
    "RequestError",
    "SpecError",
    "TargetError",
    "UnknownStrategyError",
    "brief",
    "nearest",
]


class EagleError(Exception):
    """Base of all errors raised by this library; the command line exits with status 2 on it.

    Attributes:
        results: if `Decoder.generate` raised it after some of its prompts were answered, the
            `Result` of each of those, by the prompt's index; otherwise empty.
    """

    results: Mapping[int, Any] = MappingProxyType({})


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


class CheckpointError(EagleError):
    """A draft head's checkpoint is missing, damaged, unsafe, or of another shape."""


class CompileError(EagleError):
    """A target's pass cannot be compiled ahead of time here, or what was compiled is not it."""


class AssetError(EagleError):
    """A file could not be fetched, does not match its digest, or could not be stored."""


class RequestError(EagleError):
    """A prompt or a sampling parameter is not valid, or exceeds the decoder's capacity."""


class DataError(EagleError):
    """Training or evaluation data cannot be used."""


class CopyError(EagleError, TypeError):
    """A decoder, its target or its caches were to be copied, pickled or sent to a process."""


class NumericalError(EagleError):
    """The target or the draft head produced NaN; no token can be chosen from that."""


def brief(value: object) -> str:
    """Return what a value looks like, in one line of at most 80 characters.

    >>> brief(["a", "b"])
    "['a', 'b']"
    """
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 80 else shown[:77] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of *known*, or an empty string.

    >>> nearest("statc", ["static", "chain"])
    " Did you mean 'static'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
