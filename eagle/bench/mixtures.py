"""The experts of a layer by their sizes, and how many of them some rows read; knows no weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Mixture", "mixture_of"]


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer.

    Attributes:
        experts: E.
        top: T, those that a row is sent to.
        hidden: H, numbers of a row.
        inner: I, width of an expert.
    """

    experts: int
    top: int
    hidden: int
    inner: int

    def expected(self, rows: int) -> float:
        """Return how many experts some rows read on average, each sent anywhere by itself."""
        return self.experts * (1 - (1 - self.top / self.experts) ** rows)


def mixture_of(config: Any) -> Mixture | None:
    """Return the experts of a layer by a transformers configuration, or None if there are none."""
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    top = getattr(config, "num_experts_per_tok", None)
    if not count or not top:
        return None
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return Mixture(count, top, config.hidden_size, inner)
