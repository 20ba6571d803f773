"""EAGLE's feature: the LM head's input, one vector per token (arXiv 2401.15077, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from eagle.plugin import BuildContext, StrategyConfig, TargetInfo

__all__ = ["LastHidden", "LastHiddenConfig"]


class LastHiddenConfig(StrategyConfig):
    """`last-hidden` and `auto` have no settings."""


class LastHidden:
    """Passes on the last hidden state, after the final norm, unchanged: F = H."""

    capturable = True
    layers: tuple[int, ...] = ()

    def __init__(self, config: LastHiddenConfig, context: BuildContext) -> None:
        pass

    def feature_size(self, target: TargetInfo) -> int:
        """Return H."""
        return target.hidden_size

    def extract(self, last: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
        """Return *last*, ``[B, N, H]``."""
        return last
