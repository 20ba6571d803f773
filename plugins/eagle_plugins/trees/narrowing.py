"""Smaller trees where a cycle runs over many slots; knows rates and numbers of rows, no costs.

A pass over few rows takes as long as reading the weights, whatever the rows are. Over many it is
bound by arithmetic, and there every node costs. So a tree has as many nodes as make about a hundred
rows of all slots together: on an H200 and the llama2-7b shape the best of those that were tried
(docs/performance/batches.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from eagle.plugin import (
    Drafter,
    Draws,
    Law,
    RankRates,
    Seen,
    StaticTree,
    TokenTree,
    Topology,
    TreeShape,
)
from eagle_plugins.trees.following import fewest_levels

__all__ = ["NarrowingTree"]

_NODES = (11, 4)  # the root included. Few trees, for each is compiled
# From so many slots on that a cycle runs over. On an H200, 25 candidates for each of eight that
# sample made 1.16 times plain decoding, less than a chain of three (docs/performance/batches.md).
_WIDTHS = (8, 32)
# From so many slots on that a decoder has, where a seed was given: the spec's usual number, eight,
# keeps the usual tree for a lone request.
_SLOTS = (16, 32)
_NEARLY = 0.97  # of the tokens that the best number of levels promises, for which fewer will do


class NarrowingTree:
    """A usual tree, and smaller ones where it would be verified for many requests at once.

    A cycle's tree follows the slots that it runs over. Greedy answers do not depend on trees, and
    what is drawn has the target's distribution by any tree that was chosen before.

    But under the laws by which candidates are drawn apart from the text, a seed says the same with
    the same tree alone. So while somebody samples whose seed was given, the tree is that of as many
    slots as the decoder has: who shares a batch changes no text that is to be the same again, and
    one such request does not give many the trees of few. By `Law.SHARED_NOISE` a text depends on
    no tree.

    Args:
        usual: the tree of few slots.
        law: by which all draw.
        rates: of the head.
    """

    capturable = True

    def __init__(self, usual: Topology, law: Law, rates: RankRates) -> None:
        self._widths, self._slots, found = [0], [0], [usual]
        for nodes, width, slots in zip(_NODES, _WIDTHS, _SLOTS, strict=True):
            if nodes < found[-1].nodes:
                self._widths.append(width)
                self._slots.append(slots)
                found.append(_likeliest(rates, nodes, usual.depth))
        self._follows = law != Law.SHARED_NOISE  # a seed's text the tree
        self._builders = [StaticTree(topology, law) for topology in found]
        self.laws = frozenset[Law]().union(*(one.laws for one in self._builders))
        self.uniforms = self._builders[0].uniforms

    @property
    def shape(self) -> TreeShape:
        """See `eagle.plugin.TreeBuilder`: of the usual tree."""
        return self._builders[0].shape

    @property
    def alternatives(self) -> Sequence[StaticTree]:
        """See `eagle.plugin.VaryingTree`; the usual tree first."""
        return self._builders

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one usual tree per slot."""
        return self._builders[0].build(drafter, draws)

    def choose(self, seen: Seen) -> int:
        """See `eagle.plugin.VaryingTree`."""
        width = max(seen.width, seen.active)
        if seen.seeded and self._follows:
            bounds, many = self._slots, max(width, seen.slots)
        else:
            bounds, many = self._widths, width
        return max(number for number, least in enumerate(bounds) if many >= least)

    def foresee(self, width: int, *, sampled: bool, slots: int) -> Collection[int]:
        """See `eagle.plugin.ForeseesChoice`."""
        seen = Seen(active=width, committed=(), width=width, sampled=sampled, slots=slots)
        return {self.choose(seen), self.choose(replace(seen, seeded=sampled))}


def _likeliest(rates: RankRates, nodes: int, deepest: int) -> Topology:
    depths = range(1, min(len(rates.levels), deepest) + 1)
    tree = fewest_levels([rates.likeliest(nodes - 1, depth) for depth in depths], _NEARLY)
    return Topology.from_paths([path for path, _ in tree])
