"""The heads of the paper's ablation: what becomes of EAGLE if it sees less, or the wrong token.

arXiv 2401.15077, sections 1 and 4.3: tokens alone, features alone, and features with the token of
their own position, each against the head `eagle`. One network, cache and checkpoint for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import Step, TargetInfo
from eagle_plugins.heads.eagle import EagleHead

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

    An entry is given the next token, as for every head. It is one too early here, so it is kept
    for the entry after it: by row for committed text, and for drafts in the state, which is the
    predicted feature and the embedding of the token at its position. No entry was given the first
    token of a text; the embedding in its place is zero, in training as in decoding.
    """

    kind = "feature-unshifted"

    def state_size(self, target: TargetInfo) -> int:
        """Return 2 H."""
        return 2 * target.hidden_size

    def allocate(self, slots: int, rows: int) -> None:
        """Allocate the cache, and the tokens of the committed text."""
        super().allocate(slots, rows)
        self._given = torch.zeros(slots, rows, dtype=torch.int64, device=self._target.device)

    def absorb(self, tokens: Tensor, features: Tensor, step: Step) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        self._given[step.slots, step.rows] = tokens
        own = self._given[step.slots, (step.rows - 1).clamp(min=0)]
        joined = self._pair(own, step.rows == 0, features)
        return self._state(self._cached(joined, step), tokens)

    def extend(self, tokens: Tensor, states: Tensor, step: Step) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`."""
        predicted, own = states.chunk(2, dim=-1)
        return self._state(self._cached(torch.cat((own, predicted), dim=-1), step), tokens)

    def train_states(
        self, tokens: Tensor, features: Tensor, positions: Tensor, visible: Tensor
    ) -> Tensor:
        """See `eagle.plugin.TrainableHead.train_states`."""
        joined = self._pair(tokens.roll(1, dims=1), positions == 0, features)
        return self._state(self._parallel(joined, positions, visible), tokens)

    def logits(self, states: Tensor) -> Tensor:
        """Return the frozen LM head's logits of predicted features."""
        return super().logits(states.chunk(2, dim=-1)[0])

    def _pair(self, own: Tensor, first: Tensor, features: Tensor) -> Tensor:
        """Return features behind the embeddings of their own tokens, of which the first has none.

        Args:
            own: int64 ``[B, T]``, tokens at the features' positions.
            first: bool ``[B, T]``, which are the first of their texts.
            features: ``[B, T, H]``.
        """
        embedded = self._target.embed(own).masked_fill(first[..., None], 0)
        return torch.cat((embedded, features), dim=-1)

    def _state(self, predicted: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat((predicted, self._target.embed(tokens).to(predicted.dtype)), dim=-1)
