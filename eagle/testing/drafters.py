"""A drafter without a head, for testing tree builders."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import Sampling

__all__ = ["RandomDrafter"]


class RandomDrafter:
    """Stands in for `eagle.plugin.Drafter`: random draft logits, and a check of what is asked for.

    Args:
        sampling: the slots' parameters.
        vocab_size: V.
        seed: of the logits.
        checks: whether requests are checked, which reads them on the host.
    """

    draft_vocab = None

    def __init__(
        self, sampling: Sampling, vocab_size: int, seed: int = 0, *, checks: bool = True
    ) -> None:
        self._checks = checks
        self.sampling = sampling
        self.expanded = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._vocab, self._slots = vocab_size, sampling.temperature.shape[0]
        self.root = torch.randint(vocab_size, (self._slots,), generator=self._generator)

    def begin(self) -> Tensor:
        """Return random draft logits ``[B, 1, V]``."""
        return self._logits(1)

    def levels(self) -> None:
        """Return None: no two nodes have the same distribution."""
        return

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        """Return random draft logits ``[B, W, V]``, after checking the request."""
        assert tokens.shape == parents.shape, "tokens and parents differ in shape"
        assert tokens.shape[0] == self._slots, "tokens are not [B, W]"
        if not self._checks:
            return self._logits(tokens.shape[1])
        assert (parents >= -1).all(), "-1 is the root; there is nothing before it"
        assert (parents < self.expanded).all(), "a parent was not expanded before its child"
        assert ((tokens >= 0) & (tokens < self._vocab)).all(), "a token is out of range"
        self.expanded += tokens.shape[1]
        return self._logits(tokens.shape[1])

    def _logits(self, width: int) -> Tensor:
        return torch.randn(self._slots, width, self._vocab, generator=self._generator) * 3
