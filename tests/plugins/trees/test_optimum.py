"""`size: auto` against every tree that there is, for rates small enough to look at all of them."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin import Budget, Costs, Curve, Fit, RankRates
from eagle_plugins.trees.sizes import static_options

RANKS, LEVELS = 3, 3


def every_tree(limit):
    """Return all sets of rank paths with up to so many nodes that hold every path's parent."""
    paths = [p for d in range(1, LEVELS + 1) for p in product(range(RANKS), repeat=d)]
    found, frontier = {frozenset()}, {frozenset()}
    for _ in range(limit):
        frontier = {
            tree | {path}
            for tree in frontier
            for path in paths
            if path not in tree and (len(path) == 1 or path[:-1] in tree)
        }
        found |= frontier
    return found - {frozenset()}


TREES = every_tree(4)
"""All trees of up to four candidates."""


def expected(tree, rates):
    """Return the tokens of a cycle: the bonus token, and every node by its path's chance."""
    total = 1.0
    for path in tree:
        chance = 1.0
        for level, rank in zip(rates.levels, path, strict=False):
            chance *= level[rank]
        total += chance
    return total


@st.composite
def measured_rates(draw):
    levels = []
    for _ in range(LEVELS):
        parts = sorted(draw(st.lists(st.integers(1, 20), min_size=RANKS, max_size=RANKS)))
        total = sum(parts) + draw(st.integers(0, 30))
        levels.append(tuple(part / total for part in reversed(parts)))
    return RankRates(levels=tuple(levels), positions=1, source="made up")


@settings(max_examples=25, deadline=None)
@given(rates=measured_rates())
def test_no_tree_of_so_many_nodes_and_levels_has_more_accepted(rates):
    for nodes, depth in product(range(1, 5), range(1, LEVELS + 1)):
        own = {path for path, _ in rates.likeliest(nodes, depth)}
        rivals = [t for t in TREES if len(t) <= nodes and max(map(len, t)) <= depth]
        most = max(expected(tree, rates) for tree in rivals)
        assert expected(own, rates) == pytest.approx(most, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    rates=measured_rates(),
    steps=st.lists(st.floats(0.01, 5.0), min_size=5, max_size=5),
    level=st.floats(0.01, 3.0),
)
def test_no_tree_gives_more_tokens_a_second_where_a_level_costs_the_same_at_any_width(
    rates, steps, level
):
    times = [4.0 + sum(steps[:count]) for count in range(1, 6)]
    costs = Costs(
        verify=Curve.of(enumerate(times, start=1)),
        begin=0.5,
        level=Curve.of([(1, level)]),
        rest=0.5,
        context=64,
    )
    fit = Fit.best(static_options(Budget(rates, costs)), lambda option: option)
    assert fit is not None

    def speed(tree):
        depth = max(map(len, tree))
        return expected(tree, rates) / costs.cycle(len(tree) + 1, [1] * (depth - 1))

    assert fit.chosen.rate / 1e3 == pytest.approx(max(map(speed, TREES)), rel=1e-12)
