"""The heads of the paper's ablation: what becomes of EAGLE if it sees less, or the wrong token.

arXiv 2401.15077, sections 1 and 4.3: tokens alone, features alone, and features with the token of
their own position, each against the head `eagle`. One network, cache and checkpoint for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eagle.plugin import Committed, Drafted, TargetInfo
from eagle_plugins.heads.eagle import EagleHead, side_by_side

__all__ = ["FeatureHead", "TokenHead", "UnshiftedHead"]


class TokenHead(EagleHead):
    """Sees the shifted tokens and no feature: a language model of one layer; F = S = H."""

    kind = "token"
    inputs = 1

    def _join(self, tokens: Tensor, features: Tensor) -> Tensor:
        return self._target.embed(tokens)


class FeatureHead(EagleHead):
    """Sees features and no token, so it cannot know which token was drawn; F = S = H.

    All children of a node have the same state, as they differ in their tokens alone.
    """

    kind = "feature"
    inputs = 1

    def _join(self, tokens: Tensor, features: Tensor) -> Tensor:
        return features


class UnshiftedHead(EagleHead):
    """Sees each feature with the token of its own position, not with the next; F = H, S = 2 H.

    An entry of committed text is given both tokens. A draft's own token is that of its parent, so
    the state is the predicted feature and the embedding of the token at its position.
    """

    kind = "feature-unshifted"

    def state_size(self, target: TargetInfo) -> int:
        """Return 2 H."""
        return 2 * target.hidden_size

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        joined = self._join(committed.own, committed.features)
        return self._state(self.over_cache(committed.step, joined), committed.tokens)

    def extend(self, drafted: Drafted) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`."""
        predicted, own = drafted.states.chunk(2, dim=-1)
        joined = torch.cat((own, predicted), dim=-1)
        return self._state(self.over_cache(drafted.step, joined), drafted.tokens)

    def train_states(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Sequence[Tensor],
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """See `eagle.plugin.TrainableHead.train_states`."""
        joined = self._join(own, side_by_side(features))
        return self._state(self.in_parallel(positions, visible, joined), tokens)

    def feed_back(self, states: Tensor) -> Tensor:
        """Return the predicted features."""
        return states.chunk(2, dim=-1)[0]

    def logits(self, states: Tensor) -> Tensor:
        """Return the frozen LM head's logits of predicted features."""
        return super().logits(self.feed_back(states))

    def _state(self, predicted: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat((predicted, self._target.embed(tokens).to(predicted.dtype)), dim=-1)
