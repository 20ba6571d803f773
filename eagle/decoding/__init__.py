"""Requests in, tokens out: THE loop, and what it needs of prompts and text; knows cycles, not what
is in them.
"""

from eagle.decoding.decoder import Decoder
from eagle.decoding.engine import Engine
from eagle.decoding.handles import Handle, News
from eagle.decoding.inputs import Prompt, encode
from eagle.decoding.logprobs import TokenLogprobs
from eagle.decoding.requests import Event, Result, Stats
from eagle.decoding.resolving import resolve_for
from eagle.decoding.text import Piece, half_surrogate
from eagle.decoding.threads import EngineStats
from eagle.decoding.trace import Trace, TracedCycle, TracedNode

__all__ = [
    "Decoder",
    "Engine",
    "EngineStats",
    "Event",
    "Handle",
    "News",
    "Piece",
    "Prompt",
    "Result",
    "Stats",
    "TokenLogprobs",
    "Trace",
    "TracedCycle",
    "TracedNode",
    "encode",
    "half_surrogate",
    "resolve_for",
]
