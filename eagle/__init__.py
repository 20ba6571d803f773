"""Feature-level speculative decoding (EAGLE): the same output distribution, in fewer passes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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

    __version__: str

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
    if name == "__version__":
        globals()[name] = _version()  # looked up once
        return globals()[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'eagle' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("eagle-decoding")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+unknown"
