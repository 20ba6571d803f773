"""No draft head: what the spec `plain` uses to decode with the target alone, in the same loop."""

from __future__ import annotations

from torch import Tensor

from eagle.plugin import (
    AttentionBackend,
    BuildContext,
    Committed,
    Drafted,
    Pages,
    StrategyConfig,
    TargetInfo,
    TargetModel,
)

__all__ = ["NoHead", "NoHeadConfig"]


class NoHeadConfig(StrategyConfig):
    """The head `none` has no settings."""


class NoHead:
    """Takes any features and predicts nothing; goes with the tree `none`."""

    capturable = True
    paged = True

    def __init__(self, config: NoHeadConfig, context: BuildContext) -> None:
        pass

    def feature_size(self, target: TargetInfo) -> int:
        """Return H: nothing is done with the features."""
        return target.hidden_size

    def state_size(self, target: TargetInfo) -> int:
        """Return 0."""
        return 0

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """There is nothing to load."""

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """There is nothing to keep."""

    def absorb(self, committed: Committed) -> Tensor:
        """Return states of size zero."""
        return committed.features[..., :0]

    def extend(self, drafted: Drafted) -> Tensor:
        """Fail: there is nothing to extend."""
        raise NotImplementedError("the head 'none' drafts nothing; use it with the tree 'none'")

    def logits(self, states: Tensor) -> Tensor:
        """Fail: there are no draft logits."""
        raise NotImplementedError("the head 'none' drafts nothing; use it with the tree 'none'")
