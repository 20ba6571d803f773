"""What a head makes of verifications: the shipped ones pass, and each kind of breach is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eagle.testing import check_draft_head
from tests.contracts import toys


class Reading(toys.Recalls):
    def learn(self, found):
        if found.real.any():
            super().learn(found)


class OfAnyNode(toys.Recalls):
    """Takes padding, and what idle slots have, for nodes."""

    def learn(self, found):
        super().learn(replace(found, real=torch.ones_like(found.real)))


class OfIdleSlots(toys.Recalls):
    def learn(self, found):
        parents = found.tree.parents
        real = (parents >= 0) | (torch.arange(parents.shape[1]) == 0)
        super().learn(replace(found, real=real))


class Shared(toys.Recalls):
    """One memory of all slots."""

    def learn(self, found):
        super().learn(found)
        self.likeliest.copy_(self.likeliest.amax(0).expand_as(self.likeliest).clone())


class SharedDrafts(toys.Recalls):
    """Drafts by the other slot's."""

    def logits(self, states):
        kept = self.likeliest
        self.likeliest = kept.flip(0)
        found = super().logits(states)
        self.likeliest = kept
        return found


class Hidden(toys.Recalls):
    """Shows some other memory than it drafts by."""

    @property
    def verified_memory(self):
        return (torch.zeros(len(self.likeliest), 1),)


class Flat(toys.Recalls):
    @property
    def verified_memory(self):
        return (self.likeliest.flatten(),)


class Begun(toys.Recalls):
    def allocate(self, slots, rows):
        super().allocate(slots, rows)
        self.likeliest.fill_(1)


class InStates(toys.Recalls):
    """Says in its states what it learned."""

    def absorb(self, committed):
        states = super().absorb(committed)
        found = committed.verified
        return states if found is None else states + found.tree.tokens[:, 2, None, None]


BREACHES = {
    Reading: "on the host",
    OfAnyNode: "nodes that are padding",
    OfIdleSlots: "free slot|slot that idles",
    Shared: "in another slot",
    SharedDrafts: "in another slot",
    Hidden: "only tried is not forgotten",
    Flat: r"not \[slots",
    Begun: "not zeros",
    InStates: "depend on what was rejected",
}


@pytest.mark.parametrize("kind", BREACHES, ids=lambda kind: kind.__name__)
def test_a_head_that_learns_what_it_must_not_fails(kind, pair):
    head = kind(None, None)
    head.load(pair[0], None)
    with pytest.raises(AssertionError, match=BREACHES[kind]):
        check_draft_head(head, pair[0])


def test_a_head_that_learns_slot_by_slot_passes(pair):
    head = toys.Recalls(None, None)
    head.load(pair[0], None)
    check_draft_head(head, pair[0])
