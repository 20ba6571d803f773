"""The speculative rule for one slot in plain Python: the readable reference that is proved exact.

It knows numbers that can be added and divided (`Fraction` or `float`) and a scalar source of
draws; it does not know tensors. The batched rule is tested against it on identical uniforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

from eagle.plugin import Law

__all__ = ["Number", "ScalarDraws", "ScalarNode", "scalar_speculative"]

Number = Fraction | float


class ScalarNode(Protocol):
    """A node of a token tree with the distributions of what follows it."""

    @property
    def token(self) -> int:
        """Its token."""
        ...

    @property
    def target(self) -> Sequence[Number]:
        """The target's distribution of the next token."""
        ...

    @property
    def draft(self) -> Sequence[Number] | None:
        """The distribution that its children were drawn from; None where they are a fixed set."""
        ...

    @property
    def children(self) -> Sequence[ScalarNode]:
        """Its children, in the order in which they were drawn and are tried."""
        ...


class ScalarDraws(Protocol):
    """The scalar twin of `eagle.plugin.Draws`."""

    def bernoulli(self, prob: Number) -> bool:
        """Return True with a probability."""
        ...

    def categorical(self, weights: Sequence[Number]) -> int:
        """Return an index, drawn in proportion to weights."""
        ...


def scalar_speculative(
    root: ScalarNode, law: Law, draws: ScalarDraws
) -> tuple[list[ScalarNode], int]:
    """Return the accepted nodes below the root, in order, and the bonus token.

    Speculative sampling (arXiv 2211.17192, 2302.01318) over several siblings: after a rejection
    the next sibling is held against the residual distribution (SpecInfer, arXiv 2305.09781, for
    independent siblings; EAGLE, arXiv 2401.15077, for those drawn without replacement). Under
    the law top-k one draw from the target does the same.

    Args:
        root: the root of the slot's tree.
        law: how siblings were drawn where a node has a draft distribution: one of the known laws.
        draws: the only source of chance.
    """
    follow = _draw if law.fixed else _try_in_turn
    node = root
    accepted: list[ScalarNode] = []
    while True:
        child, token = follow(node, law, draws)
        if child is None:
            return accepted, token
        accepted.append(child)
        node = child


def _draw(node: ScalarNode, law: Law, draws: ScalarDraws) -> tuple[ScalarNode | None, int]:
    """Return the child that has the token drawn, if one does, and that token.

    Trying the members of a fixed set in turn is a way of drawing a token from the target.
    """
    token = draws.categorical(node.target)
    return next((child for child in node.children if child.token == token), None), token


def _try_in_turn(node: ScalarNode, law: Law, draws: ScalarDraws) -> tuple[ScalarNode | None, int]:
    """Return the accepted child and its token, or None and the token that comes instead."""
    target, draft = list(node.target), node.draft
    for child in node.children:
        token = child.token
        # A member of a fixed set was "drawn" from a distribution with all its mass on it.
        proposal = _delta(token, len(target)) if draft is None else draft
        if draws.bernoulli(min(1, target[token] / proposal[token])):
            return child, token
        rest = [max(p - q, 0) for p, q in zip(target, proposal, strict=True)]
        target = _normalised(rest, otherwise=target)
        if draft is not None and law == Law.WITHOUT_REPLACEMENT:
            rest = [0 if index == token else q for index, q in enumerate(draft)]
            draft = _normalised(rest, otherwise=rest)
    return None, draws.categorical(target)


def _delta(token: int, vocab: int) -> list[Number]:
    return [int(index == token) for index in range(vocab)]


def _normalised(weights: Sequence[Number], otherwise: Sequence[Number]) -> list[Number]:
    """Return weights over their sum. An empty residual is rounding: then nothing was to reject."""
    mass = sum(weights)
    return [weight / mass for weight in weights] if mass > 0 else list(otherwise)
