"""`check_learning`: what a draft head makes of verifications that it is told of; knows no head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from eagle.cache import Step
from eagle.plugin import (
    Committed,
    DraftHead,
    LearnsVerified,
    ParallelHead,
    TargetModel,
    TokenTree,
    Verified,
    ancestor_mask,
)
from eagle.testing.capture import assert_capturable

__all__ = ["check_learning"]

_PARENTS = (-1, 0, 0, 1, 1, 2, -1)  # of the nodes of every tree; the last one is padding
_PATH = (0, 1, 3)  # those that are accepted
_READ = 6  # tokens that are read as a prompt, before the tree


def check_learning(
    head: DraftHead,
    target: TargetModel,
    text: Tensor,
    features: Tensor,
    begin: Callable[[], None],
    close: Callable[[Tensor, Tensor, str], None],
) -> None:
    """Check that a head learns slot by slot, from real nodes, and in the memory that it shows.

    Args:
        head: a loaded head that is a `eagle.plugin.LearnsVerified`.
        target: its target.
        text: int64 ``[2, 10]``, what two slots say.
        features: ``[2, 9, F]``, of their first tokens.
        begin: allocates, and lets both slots begin.
        close: compares states or draft logits, and says what differs.
    """
    assert isinstance(head, LearnsVerified)
    trial = _Trial(head, target, text, features)
    begin()
    memory = trial.memory
    for part in memory:
        assert part.shape[:1] == (2,), f"verified_memory is {list(part.shape)}, not [slots, ...]"
        assert not part.any(), "verified_memory is not zeros before anything was verified"
    trial.read()
    told, none = trial.verified(0), torch.zeros(2, dtype=torch.bool)
    if head.capturable:
        assert_capturable(lambda: trial.cycle(told))

    def after(*given: Verified, idle: Tensor = none) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return states, drafts and memory after the same text, told of some verifications."""
        begin()
        trial.read()
        for number, one in enumerate(given):
            for part in trial.memory if number else ():
                part.zero_()  # as where a cycle was only tried
            states = trial.cycle(one, idle)
        return states, trial.drafts(states), [part.clone() for part in trial.memory]

    states, drafts, kept = after(told)
    other = trial.verified(1)
    close(after(other)[0], states, "the head's states depend on what was rejected")

    _, again, same = after(other, told)
    close(again, drafts, "what was learned in a cycle that was only tried is not forgotten")
    for one, expected in zip(same, kept, strict=True):
        close(one, expected, "memory that is put back is not all that was learned")

    mixed = _of_slots(told, other)
    _, beside, parts = after(mixed)
    close(beside[:1], drafts[:1], "a slot's drafts depend on what was verified in another slot")
    for one, expected in zip(parts, kept, strict=True):
        close(one[0], expected[0], "a slot learns of what was verified in another slot")

    padded = trial.verified(0, padding=True)
    for one, expected in zip(after(padded)[2], kept, strict=True):
        close(one, expected, "the head learns of nodes that are padding")

    idle = torch.tensor([False, True])
    _, beside, parts = after(mixed, idle=idle)
    close(beside[:1], drafts[:1], "a slot's drafts depend on what was verified in a free slot")
    for one, expected in zip(parts, kept, strict=True):
        close(one[0], expected[0], "a slot learns of what was verified in a free slot")
        assert not one[1].any(), "the head learns of a slot that idles"


class _Trial:
    """A tree in two slots of which a path is accepted, so that they say the same text always."""

    def __init__(
        self, head: DraftHead, target: TargetModel, text: Tensor, features: Tensor
    ) -> None:
        self._head, self._text, self._features = head, text, features
        self._vocab, self._dtype = target.info.vocab_size, target.dtype

    @property
    def memory(self) -> list[Tensor]:
        assert isinstance(self._head, LearnsVerified)
        return list(self._head.verified_memory)

    def verified(self, seed: int, *, padding: bool = False) -> Verified:
        """Return what is found at the nodes: the rejected ones are another number's own.

        Args:
            seed: the number.
            padding: let the padding hold something else.
        """
        generator = torch.Generator().manual_seed(seed)
        slots, nodes = 2, len(_PARENTS)
        tokens = torch.randint(self._vocab, (slots, nodes), generator=generator)
        accepted = torch.Generator().manual_seed(-1)
        logits = 5 * torch.randn(slots, nodes, self._vocab, generator=generator)
        for place, node in enumerate(_PATH):
            tokens[:, node] = self._text[:, _READ + place]
            logits[:, node] = 5 * torch.randn(slots, self._vocab, generator=accepted)
        if padding:
            tokens[:, -1] = (tokens[:, -1] + 1) % self._vocab
            logits[:, -1] = torch.nan
        parents = torch.tensor([_PARENTS] * slots)
        seen = ancestor_mask(parents, 2)
        tree = TokenTree(tokens, parents, seen.sum(2) - 1, parents * 0, seen)
        real = (parents >= 0) | (torch.arange(nodes) == 0)
        path = torch.tensor([_PATH] * slots)
        return Verified(tree, logits.to(self._dtype), real, path)

    def read(self) -> None:
        """Let the head take in both texts up to the tree."""
        self._absorb(0, _READ, torch.full((2,), _READ))

    def cycle(self, found: Verified, idle: Tensor | None = None) -> Tensor:
        """Let the head take in what was accepted; return its states."""
        count = torch.full((2,), len(_PATH))
        if idle is not None:
            count = count.masked_fill(idle, 0)
            found = replace(found, real=found.real & ~idle[:, None])
        return self._absorb(_READ, len(_PATH), count, found)

    def _absorb(
        self, start: int, entries: int, count: Tensor, found: Verified | None = None
    ) -> Tensor:
        piece = slice(start, start + entries)
        step = Step.chain(torch.full((2,), start), entries, 16)
        parts = (self._text[:, 1:][:, piece], self._text[:, piece], self._features[:, piece])
        return self._head.absorb(Committed(*parts, count, step, found))

    def drafts(self, states: Tensor) -> Tensor:
        """Return draft logits of what follows the text."""
        if isinstance(self._head, ParallelHead):
            step = Step.chain(torch.full((2,), _READ + len(_PATH)), 3, 16)
            return self._head.draft(self._text[:, -1], states[:, -1], step)
        return self._head.logits(states)


def _of_slots(first: Verified, second: Verified) -> Verified:
    """Return what one says of the first slot and another of the second."""
    names = ("tokens", "parents", "depths", "ranks", "ancestors")
    both = [torch.cat((getattr(first.tree, n)[:1], getattr(second.tree, n)[1:])) for n in names]
    tokens, parents, depths, ranks, seen = both
    logits = torch.cat((first.logits[:1], second.logits[1:]))
    return Verified(TokenTree(tokens, parents, depths, ranks, seen), logits, first.real, first.path)
