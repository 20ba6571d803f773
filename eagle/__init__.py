"""Feature-level speculative decoding (EAGLE): the same output distribution, in fewer passes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle.decoding import (
        Decoder,
        Engine,
        EngineStats,
        Event,
        Handle,
        Result,
        Stats,
        TokenLogprobs,
    )
    from eagle.errors import EagleError
    from eagle.plugin import SamplingParams
    from eagle.spec import DecoderSpec, load_spec

__all__ = [
    "Decoder",
    "DecoderSpec",
    "EagleError",
    "Engine",
    "EngineStats",
    "Event",
    "Handle",
    "Result",
    "SamplingParams",
    "Stats",
    "TokenLogprobs",
    "__version__",
    "load_spec",
]

try:
    __version__ = version("eagle-decoding")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

_HOMES = {
    "Decoder": "eagle.decoding",
    "DecoderSpec": "eagle.spec",
    "EagleError": "eagle.errors",
    "Engine": "eagle.decoding",
    "EngineStats": "eagle.decoding",
    "Event": "eagle.decoding",
    "Handle": "eagle.decoding",
    "Result": "eagle.decoding",
    "SamplingParams": "eagle.plugin",
    "Stats": "eagle.decoding",
    "TokenLogprobs": "eagle.decoding",
    "load_spec": "eagle.spec",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line's help needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eagle' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
