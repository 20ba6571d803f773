"""Trees whose size follows how many slots are decoded; knows rates, costs and what was accepted.

Which of a few trees a cycle drafts is chosen before it begins, by the number of active slots, by
what cycles cost over so many, and by how much has been accepted lately.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from eagle.plugin import (
    Costs,
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

__all__ = ["FollowingTree", "fewest_levels"]

# Nodes, the root included, of trees to choose from; fewer where what drafts each is compiled.
_SIZES, _SIZES_COMPILED = (2, 3, 4, 6, 9, 13, 18, 26, 40, 61), (4, 6, 13, 26)
_NEARLY = 0.94  # of the tokens that the best number of levels promises, for which fewer will do
_MEMORY = 0.97  # of what was seen, how much still counts a cycle later
_IDLE_MEMORY = 0.995  # and where cycles draft nothing
_PRIOR = 8.0  # cycles of one slot that the head's measured acceptance counts for
_STAY = 1.03  # another tree is taken where it promises so much more: each is captured by itself
_STEPS = 12  # of halving an interval


@dataclass(frozen=True)
class _Choice:
    """One tree: its builder, and the probabilities of its nodes, added up level by level."""

    builder: StaticTree
    levels: tuple[float, ...]
    extended: tuple[int, ...]

    @classmethod
    def of(cls, topology: Topology, rates: RankRates) -> _Choice:
        levels, extended = [0.0] * topology.depth, [0] * max(topology.depth - 1, 0)
        for path in topology.paths[1:]:
            chance = 1.0
            for rank, level in zip(path, rates.levels, strict=False):
                chance *= level[rank] if rank < len(level) else 0.0
            levels[len(path) - 1] += chance if len(path) <= len(rates.levels) else 0.0
            if len(path) > 1 and path[-1] == 0:
                extended[len(path) - 2] += 1
        return cls(StaticTree(topology, Law.SHARED_NOISE), tuple(levels), tuple(extended))

    def more(self, share: float) -> float:
        """Return the drafted tokens to expect, each level by so much less likely than measured."""
        return sum(own * share ** (depth + 1) for depth, own in enumerate(self.levels))

    def milliseconds(self, costs: Costs) -> float:
        """Return what a cycle with this tree takes."""
        nodes = self.builder.shape.nodes
        return costs.undrafted if nodes == 1 else costs.cycle(nodes, self.extended)


_Likeliest = Sequence[tuple[tuple[int, ...], float]]  # rank paths, and how likely each is accepted


def fewest_levels(trees: Sequence[_Likeliest], nearly: float) -> _Likeliest:
    """Return the first of trees of 1, 2, 3, ... levels that promises nearly what the best does.

    Args:
        trees: by their number of levels; none where nothing was measured.
        nearly: the share of the best one's tokens that is enough.
    """
    most = max(map(_promised, trees), default=0.0)
    return next((tree for tree in trees if _promised(tree) >= nearly * most), ())


def _promised(tree: _Likeliest) -> float:
    return 1 + sum(probability for _, probability in tree)


class FollowingTree:
    """A usual tree, and smaller ones down to the root alone for when many slots are decoded.

    All of them draw by `Law.SHARED_NOISE`, under which a text does not depend on its trees; so what
    a request says does not depend on how many share the batch.

    How often the head is right was measured on other text, at temperature 0. So what cycles commit
    is compared with that: one number, by which every level is less likely than measured, is fitted
    to the cycles of late, and forgotten as slowly as there is something to learn from. Where
    nothing is drafted it goes back to 1, so that drafts are tried again now and then.

    Args:
        usual: the tree for one slot, and where nobody knows what cycles cost. None is larger.
        rates: of the head.
        few: choose among few trees, one of each size.
    """

    capturable = True
    laws = frozenset({Law.TOP_K, Law.SHARED_NOISE})
    uniforms = 0

    def __init__(self, usual: Topology, rates: RankRates, *, few: bool = False) -> None:
        found = {usual.paths: usual, Topology().paths: Topology()}
        depths = range(1, min(len(rates.levels), usual.depth) + 1)
        sizes = _SIZES_COMPILED if few else _SIZES
        for nodes in (size for size in sizes if size <= usual.nodes):
            trees: list[_Likeliest] = [rates.likeliest(nodes - 1, depth) for depth in depths]
            if few and trees:
                trees = [fewest_levels(trees, _NEARLY)]
            for tree in trees:
                topology = Topology.from_paths([path for path, _ in tree])
                found.setdefault(topology.paths, topology)
        self._choices = [_Choice.of(topology, rates) for topology in found.values()]
        self._costs: dict[int, list[float]] = {}
        self._last, self._width = 0, 0
        self._gained = _PRIOR * self._choices[0].more(1.0)
        self._cycles = [_PRIOR, *[0.0] * (len(self._choices) - 1)]
        self._prior = self._gained
        self._share = 1.0

    @property
    def shape(self) -> TreeShape:
        """See `eagle.plugin.TreeBuilder`: of the usual tree."""
        return self._choices[0].builder.shape

    @property
    def alternatives(self) -> Sequence[StaticTree]:
        """See `eagle.plugin.VaryingTree`; the usual tree first."""
        return [choice.builder for choice in self._choices]

    @property
    def learned(self) -> frozenset[int]:
        """See `eagle.plugin.LearnsCosts`."""
        return frozenset(self._costs)

    def learn(self, slots: int, costs: Costs) -> None:
        """See `eagle.plugin.LearnsCosts`."""
        self._costs[slots] = [choice.milliseconds(costs) for choice in self._choices]

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one usual tree per slot."""
        return self._choices[0].builder.build(drafter, draws)

    def choose(self, seen: Seen) -> int:
        """See `eagle.plugin.VaryingTree`."""
        self._note(seen)
        known = sorted(self._costs)
        if not known:
            return 0
        # So many slots or the next more of which costs are known, as cycles are that wide.
        width = max(seen.width, seen.active)
        costs = self._costs[known[min(bisect_left(known, width), len(known) - 1)]]
        promised = [
            (1 + choice.more(self._share)) / taken
            for choice, taken in zip(self._choices, costs, strict=True)
        ]
        best = max(range(len(promised)), key=promised.__getitem__)
        if width != self._width or promised[best] > _STAY * promised[self._last]:
            self._last = best
        self._width = width
        return self._last

    def _note(self, seen: Seen) -> None:
        """Take note of what the tree chosen last has brought."""
        counts = [count for count in seen.committed if count is not None]
        drafted = self._choices[self._last].builder.shape.depth > 0
        kept = _MEMORY if drafted else _IDLE_MEMORY
        self._gained *= kept
        self._cycles = [kept * count for count in self._cycles]
        if not drafted:
            # Nothing to learn from: back towards what was measured of the head.
            self._gained += (1 - kept) * self._prior
            self._cycles[0] += (1 - kept) * _PRIOR
        elif counts:
            self._gained += sum(counts) - len(counts)
            self._cycles[self._last] += len(counts)
        self._share = self._fitted()

    def _fitted(self) -> float:
        """Return the share by which the trees of late would bring what they brought."""
        low, high = 0.0, 1.25
        for _ in range(_STEPS):
            middle = (low + high) / 2
            expected = sum(
                count * choice.more(middle)
                for count, choice in zip(self._cycles, self._choices, strict=True)
                if count > 1e-3
            )
            low, high = (middle, high) if expected < self._gained else (low, middle)
        return (low + high) / 2
