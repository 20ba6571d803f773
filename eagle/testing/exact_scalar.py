"""Enumerates a scalar acceptance rule in a small world, in fractions.

It knows what `eagle.plugin.scalar_speculative` asks of nodes and draws; it knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from eagle.plugin import Law
from eagle.testing.oracle import ScalarEnumeratingDraws, enumerate_scalar_draws
from eagle.testing.worlds import World, difference

__all__ = ["check_world_scalar"]

_ROOT = 0


def check_world_scalar(
    scalar: Callable[..., tuple[list[Any], int]], world: World, law: Law
) -> None:
    """Enumerate a scalar rule's outputs in one world and compare with ``==`` on fractions.

    Args:
        scalar: called with the root, the law and scalar draws; returns the accepted nodes and
            the bonus token.
        world: the world.
        law: how its siblings are drawn, all of them: a scalar rule knows one law at a time.

    Raises:
        AssertionError: see `assert_lossless`.
    """
    depth = world.shape.depth
    source = _Source(world, law)
    outputs: list[dict[int, Fraction]] = [{} for _ in range(depth + 2)]

    def run(draws: ScalarEnumeratingDraws) -> tuple[int, int]:
        accepted, bonus = scalar(_TextNode(source, draws, 0, (_ROOT,)), law, draws)
        text = (*(node.token for node in accepted), bonus)
        return len(text), world.code(text)

    for (length, code), probability in enumerate_scalar_draws(run):
        outputs[length][code] = outputs[length].get(code, Fraction(0)) + probability

    actual, expected = [Fraction(0)], [Fraction(1)]
    for table, output in zip(source.target, outputs[1:], strict=True):
        actual = [mass * p for mass, row in zip(actual, table, strict=True) for p in row]
        actual = [mass + output.get(code, 0) for code, mass in enumerate(actual)]
        expected = [mass * p for mass, row in zip(expected, table, strict=True) for p in row]
    for code, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        if got != wanted:
            raise AssertionError(difference(scalar, law, world.text(code, depth + 1), got, wanted))


class _Source:
    """A world's distributions as fractions, by depth and code."""

    def __init__(self, world: World, law: Law) -> None:
        self.world = world
        self.law = law
        depths = range(world.shape.depth + 1)
        self.target = [world.target_probs(depth) for depth in depths]
        self.draft = [world.draft_weights(depth) for depth in depths]
        self.widths = [world.widths(depth) for depth in depths]
        self.candidates = [world.candidates(depth) for depth in depths]
        self.sampled = not law.fixed and world.processors.temperature > 0


@dataclass(frozen=True)
class _TextNode:
    """A node as scalar rules see it; its children are drawn when they are first looked at.

    Putting the draft's draws off changes no probability: they do not depend on the rule's.
    """

    source: _Source
    draws: ScalarEnumeratingDraws
    node: int
    text: tuple[int, ...]

    @property
    def token(self) -> int:
        return self.text[-1]

    @cached_property
    def _place(self) -> tuple[int, int]:
        return len(self.text) - 1, self.source.world.code(self.text[1:])

    @property
    def target(self) -> tuple[Fraction, ...]:
        depth, code = self._place
        return self.source.target[depth][code]

    @property
    def draft(self) -> tuple[Fraction, ...] | None:
        depth, code = self._place
        weights = self.source.draft[depth][code]
        return tuple(Fraction(w, sum(weights)) for w in weights) if self.source.sampled else None

    @cached_property
    def children(self) -> tuple[_TextNode, ...]:
        depth, code = self._place
        found = []
        weights = list(self.source.draft[depth][code])
        places = self.source.world.children[self.node][: self.source.widths[depth][code]]
        for rank, place in enumerate(places):
            if not self.source.sampled:
                if rank == self.source.world.vocab:
                    break
                token = self.source.candidates[depth][code][rank]
            elif any(weights):
                token = self.draws.categorical(weights)
                if self.source.law == Law.WITHOUT_REPLACEMENT:
                    weights[token] = 0
            else:
                break
            found.append(_TextNode(self.source, self.draws, place, (*self.text, token)))
        return tuple(found)
