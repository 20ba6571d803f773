"""The draft head with its bookkeeping done: rows, positions and who sees whom among drafts.

Knows a head and its cache rows, and whose token ids are whose; does not know what shape the tree
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.cache import Step
from eagle.plugin import (
    Drafted,
    DraftHead,
    ParallelHead,
    Sampling,
    TokenTree,
    check_draft_logits,
    check_states,
)

__all__ = ["HeadDrafter", "with_target_ids"]


class HeadDrafter:
    """Runs the head for one cycle; what a tree builder sees as an `eagle.plugin.Drafter`.

    Args:
        head: the draft head, which has absorbed the text up to the root.
        root: int64 ``[B]``, the last committed tokens.
        state: ``[B, S]``, the head's state after absorbing the root.
        lengths: int64 ``[B]``, committed rows of the head's cache.
        span: rows of the cache that may be read.
        sampling: the slots' parameters.
        depth: D, the levels that the tree has.
        parallel: the head, where it drafts all levels in one pass.
        vocab: int64 ``[Vd]``, the target's ids of what the head drafts from, or None.
        size: V, of the target; None: how many draft logits there are is not looked at.
        agree: is told of what and how many nodes the head is to extend, before it is.

    Methods raise `Breach` where the head's states or logits are of another size than declared.
    """

    def __init__(
        self,
        head: DraftHead,
        root: Tensor,
        state: Tensor,
        lengths: Tensor,
        span: int,
        sampling: Sampling,
        depth: int,
        parallel: ParallelHead | None = None,
        vocab: Tensor | None = None,
        size: int | None = None,
        agree: Callable[[str, int], None] | None = None,
    ) -> None:
        self.root, self.sampling = root, sampling
        self._head, self._lengths, self._span, self._depth = head, lengths, span, depth
        self._parallel, self.draft_vocab, self._level = parallel, vocab, 0
        self._levels: Tensor | None = None
        self._agree = agree
        self._size = size if vocab is None else len(vocab)
        # Entry 0 is the root, entry e + 1 the e-th expanded node.
        self._states = state[:, None]
        self._seen = torch.zeros(root.shape[0], 1, 0, dtype=torch.bool, device=root.device)

    def begin(self) -> Tensor:
        """See `eagle.plugin.Drafter.begin`."""
        levels = self.levels()
        return self._logits(self._states[:, :1]) if levels is None else levels[:, :1]

    def levels(self) -> Tensor | None:
        """See `eagle.plugin.Drafter.levels`; the head is asked once in a cycle."""
        if self._levels is None and self._parallel is not None:
            step = Step.chain(self._lengths, self._depth, self._span)
            self._levels = self._parallel.draft(self.root, self._states[:, 0], step)
            self._check(self._levels, "draft")
        return self._levels

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        """See `eagle.plugin.Drafter.expand`."""
        self._level = self._level + 1 if level is None else level
        levels = self.levels()
        if levels is not None:
            return levels[:, self._level : self._level + 1].expand(-1, tokens.shape[1], -1)
        slots, width = tokens.shape
        if self._agree is not None:
            self._agree("nodes to extend", width)
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
        states = self._head.extend(Drafted(self._targets(tokens), above, self._level, step))
        check_states(states.shape[-1], self._states.shape[-1], "extend")
        self._states = torch.cat((self._states, states), dim=1)
        self._seen = torch.cat((F.pad(self._seen, (0, width)), tail), dim=1)
        return self._logits(states)

    def finish(self, tree: TokenTree) -> TokenTree:
        """Return a builder's tree with the target's token ids, whatever the head drafts from."""
        return with_target_ids(tree, self.draft_vocab)

    def _logits(self, states: Tensor) -> Tensor:
        return self._check(self._head.logits(states), "logits")

    def _check(self, logits: Tensor, method: str) -> Tensor:
        if self._size is not None:
            check_draft_logits(logits.shape[-1], self._size, method)
        return logits

    def _targets(self, tokens: Tensor) -> Tensor:
        return tokens if self.draft_vocab is None else self.draft_vocab[tokens]


def with_target_ids(tree: TokenTree, vocab: Tensor | None) -> TokenTree:
    """Return a tree with the target's token ids; its root, which nobody drafted, has them already.

    Args:
        tree: of tokens that were drafted from a vocabulary.
        vocab: int64 ``[Vd]``, their ids in the target's; None where it is the target's.
    """
    if vocab is None:
        return tree
    tokens = torch.cat((tree.tokens[:, :1], vocab[tree.tokens[:, 1:]]), dim=1)
    return replace(tree, tokens=tokens, draft_vocab=vocab)
