"""What rotary embeddings ask of a cache; knows configurations, no model."""

from __future__ import annotations

from typing import Any

__all__ = ["rotary_depends_on_length"]

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def rotary_depends_on_length(config: Any) -> str | None:
    """Return the kind of a rotary embedding whose frequencies follow the text's length, or None."""
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            return str(parameters["rope_type"])
    return None
