"""Smaller trees where a cycle runs over many slots; knows rates and numbers of rows, no costs.

A pass over few rows takes as long as reading the weights, whatever the rows are. Over many it is
bound by arithmetic, and there every node costs. So a tree has as many nodes as make about a hundred
rows of all slots together: on an H200 and the llama2-7b shape the best of those that were tried
(docs/performance/batches.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

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

# From so many slots on, nodes, the root included. Few trees, for each is compiled.
_NODES = ((8, 11), (32, 4))
_NEARLY = 0.97  # of the tokens that the best number of levels promises, for which fewer will do


class NarrowingTree:
    """A usual tree, and smaller ones where it would be verified for many requests at once.

    They draw by one law, under which a seed says the same with the same tree alone. So the usual
    tree is drafted as soon as anybody samples; greedy answers do not depend on trees.

    Args:
        usual: the tree of few slots, and of requests at temperature > 0.
        law: by which all draw.
        rates: of the head.
    """

    capturable = True

    def __init__(self, usual: Topology, law: Law, rates: RankRates) -> None:
        self._from, found = [0], [usual]
        for slots, nodes in _NODES:
            if nodes < found[-1].nodes:
                self._from.append(slots)
                found.append(_likeliest(rates, nodes, usual.depth))
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
        return self._chosen(max(seen.width, seen.active), seen.sampled)

    def foresee(self, width: int, *, sampled: bool) -> Collection[int]:
        """See `eagle.plugin.ForeseesChoice`."""
        return (self._chosen(width, sampled),)

    def _chosen(self, width: int, sampled: bool) -> int:
        if sampled:
            return 0
        return max(number for number, least in enumerate(self._from) if width >= least)


def _likeliest(rates: RankRates, nodes: int, deepest: int) -> Topology:
    depths = range(1, min(len(rates.levels), deepest) + 1)
    tree = fewest_levels([rates.likeliest(nodes - 1, depth) for depth in depths], _NEARLY)
    return Topology.from_paths([path for path, _ in tree])
