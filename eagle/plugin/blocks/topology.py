"""The fixed shape of a static tree: who is whose child; knows no tokens and no tensors.

A node is written as its *rank path*: ``[0, 2]`` is the third most likely child of the most likely
child of the root. The root itself is not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from eagle.plugin import SpecError

__all__ = ["MAX_NODES", "Level", "Topology"]

MAX_NODES = 1024
"""Every node sees every node in a mask of N x N, and costs as much as a token of a prompt."""


@dataclass(frozen=True)
class Level:
    """One drafted level: the nodes at one depth, and those above them that have children.

    Attributes:
        parents: indices of the nodes one level up that have children.
        expanded: their numbers in order of expansion, as `eagle.plugin.Drafter` counts.
        above: the numbers of the expanded nodes above `parents`, -1 for the root.
        slots: for each node of this level, the place of its parent in `parents`.
        ranks: for each node of this level, its rank among all continuations of its parent.
        orders: for each node of this level, its place among its siblings.
    """

    parents: tuple[int, ...]
    expanded: tuple[int, ...]
    above: tuple[int, ...]
    slots: tuple[int, ...]
    ranks: tuple[int, ...]
    orders: tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """A tree's shape, nodes numbered breadth first, siblings by rank, the root 0.

    Attributes:
        paths: rank paths of all nodes, the root's empty one first.
    """

    paths: tuple[tuple[int, ...], ...] = ((),)

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> Topology:
        """Return the topology with the given rank paths, in any order.

        Raises:
            SpecError: there are none or too many; one is empty, repeated, has a negative rank,
                or lacks its parent.
        """
        listed = [tuple(path) for path in paths]
        if not listed:
            raise SpecError(
                "a tree needs at least one path, such as [0]; to draft nothing, use the tree 'none'"
            )
        _check_size(len(listed) + 1)
        known: set[tuple[int, ...]] = {()}
        for path in listed:
            if not path:
                raise SpecError(
                    "the empty path [] is the root, which is always there: leave it out"
                )
            if min(path) < 0:
                raise SpecError(f"path {list(path)} has a negative rank; ranks count from 0")
            if path in known:
                raise SpecError(f"path {list(path)} is listed twice")
            known.add(path)
        for path in listed:
            if path[:-1] not in known:
                raise SpecError(
                    f"path {list(path)} has no parent: add {list(path[:-1])}, or leave it out"
                )
        return cls(tuple(sorted(known, key=lambda path: (len(path), path))))

    @classmethod
    def from_branching(cls, branching: Sequence[int]) -> Topology:
        """Return the full tree in which every node of level d has ``branching[d]`` children.

        Raises:
            SpecError: a level is empty, or the tree is too large.
        """
        if not branching:
            raise SpecError(
                "branching needs at least one level, such as [2]; "
                "to draft nothing, use the tree 'none'"
            )
        paths: list[tuple[int, ...]] = []
        level: list[tuple[int, ...]] = [()]
        for depth, width in enumerate(branching):
            if width < 1:
                raise SpecError(f"branching[{depth}] is {width}; every level needs at least 1")
            # Before the paths are made: a slip of the keyboard must not fill the memory.
            _check_size(1 + len(paths) + len(level) * width)
            level = [(*path, rank) for path in level for rank in range(width)]
            paths += level
        return cls.from_paths(paths)

    @property
    def nodes(self) -> int:
        """N, the root included."""
        return len(self.paths)

    @property
    def depth(self) -> int:
        """D, drafted levels."""
        return len(self.paths[-1])

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Index of every node's parent, -1 for the root."""
        index = {path: number for number, path in enumerate(self.paths)}
        return (-1, *(index[path[:-1]] for path in self.paths[1:]))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of every node."""
        return tuple(len(path) for path in self.paths)

    @cached_property
    def orders(self) -> tuple[int, ...]:
        """Place of every node among its siblings, from 0: its rank, unless ranks are skipped."""
        seen: dict[int, int] = {}
        orders = []
        for parent in self.parents:
            orders.append(seen.get(parent, 0))
            seen[parent] = orders[-1] + 1
        return tuple(orders)

    @cached_property
    def siblings(self) -> int:
        """K, the most children of one node."""
        return max(self.orders) + 1 if self.nodes > 1 else 0

    @cached_property
    def highest_rank(self) -> int:
        """The largest rank of any node, -1 for the root alone."""
        return max((path[-1] for path in self.paths[1:]), default=-1)

    @cached_property
    def skipped(self) -> tuple[int, ...] | None:
        """A path whose rank leaves one out, such as [1] without [0]; None if there is none."""
        for path, order in zip(self.paths[1:], self.orders[1:], strict=True):
            if path[-1] != order:
                return path
        return None

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """The nodes that have children, breadth first: the root and what the head extends."""
        return tuple(sorted({parent for parent in self.parents if parent >= 0}))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The drafted levels, from the root's children down."""
        # The root's continuation is at hand when a cycle begins, so it has no number.
        number = {node: place - 1 for place, node in enumerate(self.inner)}
        levels = []
        for depth in range(1, self.depth + 1):
            nodes = [node for node in range(self.nodes) if self.depths[node] == depth]
            parents = [node for node in self.inner if self.depths[node] == depth - 1]
            levels.append(
                Level(
                    parents=tuple(parents),
                    expanded=tuple(number[node] for node in parents),
                    above=tuple(number.get(self.parents[node], -1) for node in parents),
                    slots=tuple(parents.index(self.parents[node]) for node in nodes),
                    ranks=tuple(self.paths[node][-1] for node in nodes),
                    orders=tuple(self.orders[node] for node in nodes),
                )
            )
        return tuple(levels)


def _check_size(nodes: int) -> None:
    if nodes > MAX_NODES:
        raise SpecError(f"a tree of {nodes} nodes is too large; at most {MAX_NODES} are allowed")
