"""Bottom-up verification that looks one sibling ahead; knows how a pair of siblings is ordered.

Recursive rejection accepts a token that the draft likes too well even if the next sibling is one
that it likes too little, and then that one's share of the target is never served. How much can be
served at best is a problem of optimal transport, from sets of siblings to tokens, that has no
solution in fixed shapes. But its solution shows what to do: hand what the target wants more of than
the draft gives (*wanted*) to siblings first, and serve the rest from sets that have nothing else.

So a sibling waits while the next is looked at. Of the two, the one that is wanted is tried, or else
the one that waits; the other waits on. All that a lossless rule has to know is the law of the token
that it tries, given those that it has rejected, and that is a sum with one term for each way in
which the token can come to be tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eagle.plugin import (
    KNOWN_LAWS,
    BuildContext,
    Law,
    Number,
    ScalarDraws,
    ScalarNode,
    Strategy,
    StrategyConfig,
    TargetProbs,
    TokenTree,
    TreeShape,
    scalar_speculative,
)
from eagle_strategies.rules.measure import Owed, scalar_rest
from eagle_strategies.rules.upwards import BottomUp, Tried

__all__ = ["TRANSPORT", "TransportConfig", "TransportRule", "scalar_transport"]

_MARGIN = 1 + 2.0**-16
"""What is wanted is so by more than rounding, so that equal probabilities are treated alike."""


def scalar_transport(
    root: ScalarNode, law: Law, draws: ScalarDraws, *, level: int | None = None
) -> tuple[list[ScalarNode], int]:
    """Do for one slot, in plain Python, what `TransportRule` does: accepted nodes, bonus token.

    Args:
        root: the root of the slot's tree.
        law: how siblings were drawn.
        draws: the only source of chance.
        level: the depth of the only siblings that are ordered; None: all are.
    """
    if law.fixed:
        return scalar_speculative(root, law, draws)
    found = _visit(root, 1, law == Law.WITHOUT_REPLACEMENT, draws, level)
    assert found is not None, "the root's scale is 1 to the last"
    return found


def _visit(
    node: ScalarNode, scale: Number, distinct: bool, draws: ScalarDraws, level: int | None
) -> tuple[list[ScalarNode], int] | None:
    """Return the accepted nodes below a node and the bonus token, or None: it is rejected."""
    target, base = node.target, node.draft
    tokens = range(len(target))
    waiting: ScalarNode | None = None
    law: list[Number] = list(base or target)  # of the token that waits
    for ahead in [*node.children, None]:
        if waiting is None:
            waiting = ahead
            continue
        if base is None:
            tried, waiting = waiting, ahead
            proposal: list[Number] = [int(t == tried.token) for t in tokens]
        elif ahead is None:
            tried, waiting, proposal = waiting, ahead, law
        elif level not in (None, 1):
            tried, waiting, proposal = waiting, ahead, law
            base = [0 if distinct and t == tried.token else base[t] for t in tokens]
            law = [weight / sum(base) for weight in base]
        else:
            mass = sum(base)
            wanted = [scale * target[t] * mass > _MARGIN * base[t] for t in tokens]
            # What is left for the next sibling where t waits, and how much of that is not wanted.
            room = [mass - (base[t] if distinct else 0) for t in tokens]
            rest = sum(base[t] for t in tokens if not wanted[t])
            into = sum(law[t] / room[t] for t in tokens if not wanted[t] and room[t] > 0)
            proposal = [
                law[t] + base[t] * into
                if wanted[t]
                else law[t] * (rest - (base[t] if distinct else 0)) / room[t]
                if room[t] > 0
                else law[t]
                for t in tokens
            ]
            overtakes = wanted[ahead.token] and not wanted[waiting.token]
            tried, waiting = (ahead, waiting) if overtakes else (waiting, ahead)
            first = tried.token
            others = [0 if distinct and t == first else base[t] for t in tokens]
            weights: list[Number] = [
                # First waited and t came behind; or t waited and first, wanted, came behind.
                law[first] * others[t] / sum(others) * (wanted[first] or not wanted[t])
                + (base[first] * law[t] / room[t] if wanted[first] > wanted[t] else 0)
                for t in tokens
            ]
            law, base = [weight / sum(weights) for weight in weights], others
        token = tried.token
        own, below = (
            min(1, scale * target[token] / proposal[token]),
            None if level is None else level - 1,
        )
        found = _visit(tried, own, distinct, draws, below)
        if found is not None:
            return [tried, *found[0]], found[1]
        scale, target = scalar_rest(scale, target, proposal)
    return ([], draws.categorical(target)) if draws.bernoulli(scale) else None


@dataclass(frozen=True)
class _Pair:
    """Siblings of which one waits; float64, for a draft distribution may be all but one token.

    Attributes:
        owed: by the node above them.
        waiting: int64 ``[B]``, the sibling that waits; -1: none has been looked at.
        law: ``[B, V]``, that of its token, given those rejected.
        base: ``[B, V]``, the draft distribution; without those rejected if siblings are distinct.
        drawn: bool ``[B, 1]``, whether siblings were drawn; else they are a fixed set.
        distinct: bool ``[B, 1]``, whether drawn siblings are.
    """

    owed: Owed
    waiting: Tensor
    law: Tensor
    base: Tensor
    drawn: Tensor
    distinct: Tensor

    def where(self, chosen: Tensor, other: _Pair) -> _Pair:
        column = chosen[:, None]
        return _Pair(
            self.owed.where(chosen, other.owed),
            self.waiting.where(chosen, other.waiting),
            self.law.where(column, other.law),
            self.base.where(column, other.base),
            self.drawn.where(column, other.drawn),
            self.distinct.where(column, other.distinct),
        )


class TransportConfig(StrategyConfig):
    """Settings of `transport`."""

    levels: Annotated[
        Literal["last", "all"],
        Field(description="whose siblings are ordered; `all` suits trees of equal subtrees"),
    ] = "last"


class TransportRule(BottomUp[_Pair]):
    """Bottom-up verification that tries the wanted one of two siblings first.

    As `traversal`, but of the sibling that waits (law l, given what has been rejected) and the next
    one (from the draft q, without the tokens before it) the next is tried first if a p > q at its
    token and not at the other's. The token tried has the law l(t) + q(t) sum(l(y) / (1 - q(y))), y
    unwanted, if it is wanted, and l(t) times the chance that the next is not wanted if it is not;
    the other's law follows. Without the terms 1 - q(y) for independent siblings. What is tried, and
    the residual, are as for any law (see the module). The scales a from above guide the choice, as
    in UniVer (arXiv 2605.04543); the exact transport plans for it cost a sort of the vocabulary and
    more for every node, this costs sums.

    By default only siblings of the last level are ordered so. Above it a sibling that is wanted and
    has nothing below would be tried before one with a subtree, which costs more than it gains,
    unless siblings have subtrees alike (`levels: all`).
    """

    laws = frozenset(KNOWN_LAWS)
    scalar = staticmethod(scalar_transport)

    def __init__(self, config: TransportConfig | None = None) -> None:
        self.config = config or TransportConfig()

    def begin(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, node: Tensor, owed: Owed
    ) -> _Pair:
        """See `BottomUp.begin`."""
        draft, column = tree.drafts_at(node), owed.scale
        yes, no = torch.ones_like(column, dtype=torch.bool), torch.zeros_like(column).bool()
        owed = Owed(owed.scale.double(), owed.probs.double())
        if draft is None or tree.sampled is None:
            base, drawn = owed.probs, no
        else:
            base = tree.widened(draft, owed.probs.shape[-1]).double()
            drawn = tree.sampled[:, None] & tree.by_law(node, lambda law: no if law.fixed else yes)
        distinct = tree.by_law(node, lambda law: yes if law.distinct else no)
        return _Pair(owed, torch.full_like(node, -1), base, base, drawn, distinct)

    def attempt(
        self,
        tree: TokenTree,
        shape: TreeShape,
        brood: _Pair,
        child: Tensor,
        after: Tensor,
        more: Tensor,
    ) -> Tried[_Pair]:
        """See `BottomUp.attempt`."""
        waiting = child.where(brood.waiting < 0, brood.waiting)[:, None]
        ahead, looks = after[:, None], more[:, None] & brood.drawn
        if self.config.levels == "last":
            looks = looks & (tree.depths.gather(1, waiting) == shape.depth)
        held, next_ = tree.tokens.gather(1, waiting), tree.tokens.gather(1, ahead)
        wanted, room, proposal = self._proposal(brood)
        overtakes = looks & wanted.gather(1, next_) & ~wanted.gather(1, held)
        tried, token = ahead.where(overtakes, waiting), next_.where(overtakes, held)
        law, base = self._behind(brood, wanted & looks, room, token)
        proposal = proposal.where(looks, brood.law)
        fixed = torch.zeros_like(proposal).scatter(1, token, 1.0)
        proposal = proposal.where(brood.drawn, fixed)
        left = _Pair(
            brood.owed.after(proposal),
            waiting.where(overtakes, ahead)[:, 0],
            law,
            base,
            brood.drawn,
            brood.distinct,
        )
        return Tried(tried[:, 0], brood.owed.chance(proposal, token), left)

    @staticmethod
    def _proposal(brood: _Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is wanted, one over the room beside a token, and the law of what is tried."""
        law, base, owed = brood.law, brood.base, brood.owed
        mass = base.sum(1, keepdim=True)
        wanted = owed.scale * owed.probs * mass > _MARGIN * base
        own = base.where(brood.distinct, 0)
        room = mass - own
        per_room = torch.where(room > 0, 1 / room, 0)
        rest = base.where(~wanted, 0).sum(1, keepdim=True)
        into = (law * per_room).where(~wanted, 0).sum(1, keepdim=True)
        stays = (law * (rest - own).clamp(min=0) * per_room).where(room > 0, law)
        return wanted, per_room, (law + base * into).where(wanted, stays)

    @staticmethod
    def _behind(
        brood: _Pair, wanted: Tensor, per_room: Tensor, token: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the law of the one that waits once a token has been tried, and the draft then."""
        law, base = brood.law, brood.base
        others = base.where(~brood.distinct, base.scatter(1, token, 0.0))
        mass = others.sum(1, keepdim=True)
        first = wanted.gather(1, token)
        behind = (law.gather(1, token) * others / mass).where((first | ~wanted) & (mass > 0), 0)
        before = (base.gather(1, token) * law * per_room).where(first & ~wanted, 0)
        weights = behind + before
        total = weights.sum(1, keepdim=True)
        return (weights / total).where(total > 0, weights), others


def _build(config: TransportConfig, context: BuildContext) -> TransportRule:
    return TransportRule(config)


TRANSPORT = Strategy(
    name="transport",
    config=TransportConfig,
    build=_build,
    description="tries the wanted one of two siblings first; keeps the target's distribution",
)
