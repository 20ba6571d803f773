from __future__ import annotations

import pytest

from eagle.errors import SpecError
from eagle.plugin.blocks.topology import MAX_NODES, Topology
from eagle_plugins.trees.named import NAMED, paths_of


def test_nodes_are_numbered_breadth_first_whatever_the_order_of_the_paths():
    paths = [[0, 1], [1], [0, 0, 0], [0], [0, 0]]
    tree = Topology.from_paths(paths)
    assert tree.paths == ((), (0,), (1,), (0, 0), (0, 1), (0, 0, 0))
    assert tree.parents == (-1, 0, 0, 1, 1, 3)
    assert tree.depths == (0, 1, 1, 2, 2, 3)
    assert tree.orders == (0, 0, 1, 0, 1, 0)
    assert (tree.nodes, tree.depth, tree.siblings, tree.inner) == (6, 3, 2, (0, 1, 3))


def test_levels_name_what_is_expanded_and_under_whom():
    tree = Topology.from_paths([[0], [1], [1, 0], [1, 1], [1, 1, 0]])
    first, second, third = tree.levels
    assert (first.parents, first.above, first.slots, first.ranks) == ((0,), (-1,), (0, 0), (0, 1))
    assert (second.parents, second.above, second.slots) == ((2,), (-1,), (0, 0))
    assert (third.parents, third.above, third.slots, third.ranks) == ((4,), (0,), (0,), (0,))


def test_branching_is_the_full_tree():
    assert Topology.from_branching([2, 1]) == Topology.from_paths([[0], [1], [0, 0], [1, 0]])
    assert Topology.from_branching([4, 2, 1]).nodes == 1 + 4 + 8 + 8


def test_ranks_may_be_skipped_and_orders_count_on():
    tree = Topology.from_paths([[1], [3]])
    assert tree.orders == (0, 0, 1)
    assert (tree.siblings, tree.highest_rank, tree.skipped) == (2, 3, (1,))
    assert Topology.from_paths([[0], [1]]).skipped is None


def test_the_reference_tree_has_25_candidates_in_5_levels():
    tree = Topology.from_paths(paths_of("reference-25"))
    assert (tree.nodes, tree.depth, tree.siblings) == (26, 5, 4)
    assert [tree.depths.count(depth) for depth in range(6)] == [1, 4, 8, 8, 3, 2]
    assert len(tree.inner) - 1 == 4 + 4 + 1 + 1
    assert tree.skipped is None


@pytest.mark.parametrize("name", NAMED)
def test_every_named_tree_is_possible(name):
    assert Topology.from_paths(paths_of(name)).nodes == len(NAMED[name]) + 1


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], r"at least one path, such as \[0\]"),
        ([[]], r"\[\] is the root"),
        ([[0], [0, -1]], r"path \[0, -1\] has a negative rank"),
        ([[0], [1], [0]], r"path \[0\] is listed twice"),
        ([[0], [1, 0]], r"path \[1, 0\] has no parent: add \[1\]"),
        ([[rank] for rank in range(MAX_NODES)], rf"{MAX_NODES + 1} nodes is too large"),
    ],
)
def test_impossible_paths_are_refused(paths, message):
    with pytest.raises(SpecError, match=message):
        Topology.from_paths(paths)


@pytest.mark.parametrize(
    ("branching", "message"),
    [
        ([], "at least one level"),
        ([2, 0], r"branching\[1\] is 0"),
        ([-3], r"branching\[0\] is -3"),
        ([10**9, 10**9], "too large"),
        ([4, 4, 4, 4, 4], "1365 nodes is too large"),
    ],
)
def test_impossible_branching_is_refused(branching, message):
    with pytest.raises(SpecError, match=message):
        Topology.from_branching(branching)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        SpecError, match=r"known: likely-10, likely-5, reference-25\. Did you mean 'reference-25'\?"
    ):
        paths_of("reference-52")
