"""What a node still owes its text, and what a rejection leaves of it; knows numbers, no tree.

A bottom-up rule gives each node n a *scale* a, with the promise that the texts which come out from
n on have a times the probabilities that the target gives them. So what is owed for the next token
is the measure a p. If a sibling was drawn from q and is handed min(q, a p), then a p - min(q, a p)
is owed by what comes after its rejection, which has the probability 1 - sum(min(q, a p)): a
distribution and a scale again, whatever the sibling was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from eagle.plugin import Law, Number, TokenTree

__all__ = ["Owed", "proposal_of", "scalar_rest"]


@dataclass(frozen=True)
class Owed:
    """The measure that each slot owes at one node.

    Attributes:
        scale: ``[B, 1]``, its mass, in [0, 1].
        probs: ``[B, V]``, its distribution.
    """

    scale: Tensor
    probs: Tensor

    def chance(self, proposal: Tensor, token: Tensor) -> Tensor:
        """Return the scale ``[B, 1]`` of siblings, int64 ``[B, 1]``, that came from a proposal."""
        ratio = (self.scale * self.probs.gather(1, token) / proposal.gather(1, token)).clamp(max=1)
        # Also turns NaN into 0, so that an oracle is never asked about it.
        return ratio.where(ratio > 0, 0)

    def after(self, proposal: Tensor) -> Owed:
        """Return what is owed once a sibling from a proposal ``[B, V]`` has been rejected.

        Nothing can be left at a scale of 1 only by rounding (nothing was to reject), and then all
        stays as it was.
        """
        excess = (self.scale * self.probs - proposal).clamp(min=0)
        mass = excess.sum(-1, keepdim=True)
        whole = mass + (1 - self.scale)
        return replace(
            self,
            scale=(mass / whole).where(whole > 0, self.scale),
            probs=(excess / mass).where(mass > 0, self.probs),
        )

    def where(self, chosen: Tensor, other: Owed) -> Owed:
        """Return this where *chosen*, bool ``[B]``, and the other elsewhere."""
        column = chosen[:, None]
        return replace(
            self,
            scale=self.scale.where(column, other.scale),
            probs=self.probs.where(column, other.probs),
        )


def proposal_of(
    tree: TokenTree, left: Tensor, fixed: Tensor, node: Tensor, rank: Tensor, siblings: int
) -> Tensor:
    """Return what siblings came from, ``[B, V]``: by the law of each slot's node.

    Args:
        tree: the trees; siblings were drawn in some slots.
        left: ``[B, V]``, what the law has left of the draft distribution.
        fixed: ``[B, V]``, all mass on the sibling's token.
        node: int64 ``[B]``, the node above.
        rank: int64 ``[B]``, of the siblings.
        siblings: K; ranks are below it.
    """

    def drawn(law: Law) -> Tensor:
        if law.fixed:
            return fixed
        if type(law).proposal is Law.proposal:  # the same for all ranks
            return left
        found = law.proposal(left, 0)
        for other in range(1, siblings):
            found = law.proposal(left, other).where((rank == other)[:, None], found)
        return found

    found = tree.by_law(node, drawn)
    return found if tree.sampled is None else found.where(tree.sampled[:, None], fixed)


def scalar_rest(
    scale: Number, target: Sequence[Number], proposal: Sequence[Number]
) -> tuple[Number, Sequence[Number]]:
    """Do for one slot, in plain Python, what `Owed.after` does: scale and distribution."""
    excess = [max(scale * p - q, 0) for p, q in zip(target, proposal, strict=True)]
    mass = sum(excess)
    whole = mass + (1 - scale)
    return (
        mass / whole if whole > 0 else scale,
        [e / mass for e in excess] if mass > 0 else target,
    )
