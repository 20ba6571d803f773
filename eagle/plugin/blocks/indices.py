"""A fixed topology as index tensors on a device; knows no tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.plugin import ancestor_mask
from eagle.plugin.blocks.topology import Level, Topology

__all__ = ["LevelIndex", "TreeIndex"]


@dataclass(frozen=True)
class LevelIndex:
    """A `Level` as index tensors on a device.

    Attributes:
        parents: int64 ``[W]``, places within the level above of the nodes that have children.
        above: int64 ``[W]``, numbers of the expanded nodes above those.
        width: how many of the most likely continuations are needed.
        best: int64 ``[C]``, where each child's token stands among W x width such continuations.
        rounds: the children drawn in each round, by place in the level, and their parents'.
        children: int64 ``[W, K, 2]``, for each node and round, its child's place in the level and
            which of the level's uniforms that is drawn with; -1 where it has no further child.
    """

    parents: Tensor
    above: Tensor
    width: int
    best: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]
    children: Tensor

    @classmethod
    def of(cls, level: Level, first: int, device: torch.device) -> LevelIndex:
        """Return the index of a level, *first* being the number of the first node above it."""
        width = max(level.ranks) + 1
        turns, rounds, used = max(level.orders) + 1, [], 0
        table = [[[-1, -1]] * turns for _ in level.parents]
        for order in range(turns):
            children = [place for place, own in enumerate(level.orders) if own == order]
            slots = [level.slots[place] for place in children]
            for place, slot in zip(children, slots, strict=True):
                table[slot][order] = [place, used]
                used += 1
            rounds.append(
                (torch.tensor(children, device=device), torch.tensor(slots, device=device))
            )
        pairs = zip(level.slots, level.ranks, strict=True)
        return cls(
            parents=torch.tensor([node - first for node in level.parents], device=device),
            above=torch.tensor(level.above, device=device),
            width=width,
            best=torch.tensor([slot * width + rank for slot, rank in pairs], device=device),
            rounds=tuple(rounds),
            children=torch.tensor(table, device=device),
        )


@dataclass(frozen=True)
class TreeIndex:
    """A `Topology` on a device: ``[N]`` each, the mask ``[N, N]``, and one index per level."""

    parents: Tensor
    depths: Tensor
    ranks: Tensor
    draft_rows: Tensor
    ancestors: Tensor
    levels: tuple[LevelIndex, ...]

    @classmethod
    def of(cls, topology: Topology, device: torch.device) -> TreeIndex:
        """Return the index of a topology."""
        parents = torch.tensor(topology.parents, device=device)
        rows = {node: row for row, node in enumerate(topology.inner)}
        firsts = [topology.depths.index(depth) for depth in range(topology.depth)]
        return cls(
            parents=parents,
            depths=torch.tensor(topology.depths, device=device),
            ranks=torch.tensor(topology.orders, device=device),
            draft_rows=torch.tensor([rows.get(n, 0) for n in range(topology.nodes)], device=device),
            ancestors=ancestor_mask(parents, topology.depth),
            levels=tuple(
                LevelIndex.of(level, first, device)
                for level, first in zip(topology.levels, firsts, strict=True)
            ),
        )
