"""The draft head with its bookkeeping done: rows, positions and who sees whom among drafts.

Knows a head and its cache rows; does not know what shape the tree takes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.cache import Step
from eagle.plugin import DraftHead, Sampling

__all__ = ["CycleDrafter"]


class CycleDrafter:
    """Drafts for one cycle; what a tree builder sees as an `eagle.plugin.Drafter`.

    Args:
        head: the draft head, which has absorbed the text up to the root.
        root: int64 ``[B]``, the last committed tokens.
        state: ``[B, S]``, the head's state after absorbing the root.
        lengths: int64 ``[B]``, committed rows of the head's cache.
        span: rows of the cache that may be read.
        sampling: the slots' parameters.
    """

    def __init__(
        self,
        head: DraftHead,
        root: Tensor,
        state: Tensor,
        lengths: Tensor,
        span: int,
        sampling: Sampling,
    ) -> None:
        self.root, self.sampling = root, sampling
        self._head, self._lengths, self._span = head, lengths, span
        # Entry 0 is the root, entry e + 1 the e-th expanded node.
        self._states = state[:, None]
        self._seen = torch.zeros(root.shape[0], 1, 0, dtype=torch.bool, device=root.device)

    def begin(self) -> Tensor:
        """See `eagle.plugin.Drafter.begin`."""
        return self._head.logits(self._states[:, :1])

    def expand(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """See `eagle.plugin.Drafter.expand`."""
        slots, width = tokens.shape
        before = self._seen.shape[2]
        parent = (parents + 1)[..., None]
        # A node sees what its parent sees, and itself. The root's own entry is committed text.
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(slots, -1, -1)
        inherited = self._seen.gather(1, parent.expand(-1, -1, before))
        tail = torch.cat((inherited, itself), dim=2)
        step = Step(
            positions=self._lengths[:, None] + tail.sum(2) - 1,
            rows=self._lengths[:, None]
            + torch.arange(before, before + width, device=tokens.device),
            lengths=self._lengths,
            tail=tail,
            span=self._span,
        )
        above = self._states.gather(1, parent.expand(-1, -1, self._states.shape[2]))
        states = self._head.extend(tokens, above, step)
        self._states = torch.cat((self._states, states), dim=1)
        self._seen = torch.cat((F.pad(self._seen, (0, width)), tail), dim=1)
        return self._head.logits(states)
