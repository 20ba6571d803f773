"""What `eagle train` asks of a draft head beside its role; knows no loss, and no head.

A head has a capability by having its methods. B texts, T entries of them, V vocabulary of the
target, F feature size, S size of a head's states.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from eagle.plugin.roles import DraftHead, TargetModel

__all__ = ["ChoosesVocabulary", "TrainableHead", "TrainsLevels"]


class TrainableHead(DraftHead, Protocol):
    """A draft head that `eagle train` can train; the target stays frozen throughout."""

    @property
    def module(self) -> torch.nn.Module:
        """The trainable parameters, and nothing of the target."""
        ...

    def initialise(self, target: TargetModel, seed: int) -> None:
        """Make fresh float32 weights on the target's device, in the target's shape."""
        ...

    def train_states(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Sequence[Tensor],
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """Run the head over whole texts in parallel, without a cache.

        With several levels there are A copies of the texts side by side, one for each level, and
        T counts the entries of all: tokens, positions and `visible` are those of all copies.

        Args:
            tokens: int64 ``[B, T]``; each the token behind its entry's position.
            own: int64 ``[B, T]``; each the token at its entry's position.
            features: one ``[B, T / A, *]`` for each copy: the target's features ``[.., F]``, then
                what `feed_back` made of the states one level up, moved on by one position. Where
                ranks are looked up behind long prompts, all copies but the first leave the prompt
                out and are that much shorter.
            positions: int64 ``[B, T]``, within each text.
            visible: bool ``[B, 1, T, T]``; entry (t, s) says that t sees s.

        Returns:
            States ``[B, T, S]``; each predicts what follows its entry's token.
        """
        ...

    def feed_back(self, states: Tensor) -> Tensor:
        """Return what stands in the features' place one level down, of states ``[B, T, S]``.

        Of a head that predicts features, the predicted feature, which the regression loss looks
        at; a head may feed back its own output instead, of any size.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `load` reads, atomically."""
        ...


@runtime_checkable
class ChoosesVocabulary(Protocol):
    """A head that is told of the training text before its fresh weights are made."""

    def choose_vocabulary(self, counts: Tensor) -> None:
        """Take note of the text that `TrainableHead.initialise` is to make weights for.

        The same for a run that is resumed, whose text is the same.

        Args:
            counts: int64 ``[V]``, how often each of the target's tokens is an answer's, in what
                is trained on.
        """
        ...


@runtime_checkable
class TrainsLevels(Protocol):
    """A draft head that trains all levels in one pass, as it drafts them (`ParallelHead`).

    It has these two in place of `TrainableHead.train_states` and `TrainableHead.feed_back`, which
    are not called: nothing that it says is fed to it. `loss.through` changes nothing for it, and
    losses that compare features are refused.
    """

    def train_levels(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Tensor,
        positions: Tensor,
        visible: Tensor,
        levels: int,
    ) -> Sequence[Tensor]:
        """Run the head over whole texts in parallel, without a cache.

        Args:
            tokens: int64 ``[B, T]``; each the token behind its entry's position.
            own: int64 ``[B, T]``; each the token at its entry's position.
            features: ``[B, T, F]``, of the target.
            positions: int64 ``[B, T]``, within each text.
            visible: bool ``[B, 1, T, T]``; entry (t, s) says that t sees s: what is not behind it
                in the same text.
            levels: A.

        Returns:
            One ``[B, T, *]`` for each level d from 0. Entry t of it is what the head says d levels
            below the root that is the token at position t + 1 - d: it may know features up to
            position t - d and that token, and is held to what follows entry t's token. Entries
            less than d from the start of a text mean nothing.
        """
        ...

    def level_logits(self, states: Tensor, level: int) -> Tensor:
        """Return the draft logits ``[B, W, V]`` of such states of a level, ``[B, W, *]``."""
        ...
