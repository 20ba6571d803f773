"""The sizes weighed for `size: auto`: trees that can be built, and that are worth what is said."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eagle.errors import IncompatibleError
from eagle.plugin.budget import Budget, Costs, Curve, RankRates
from eagle.plugin.capabilities import FittedTree
from eagle.plugin.draws import UniformDraws
from eagle.plugin.roles import BuildContext, Law, TargetInfo
from eagle.plugin.sampling import Sampling, SamplingParams
from eagle.testing import check_tree_builder
from eagle_plugins.trees.dynamic import DYNAMIC, DynamicConfig
from eagle_plugins.trees.sizes import WIDTHS, dynamic_options, static_options
from eagle_plugins.trees.static import STATIC, StaticConfig

VOCAB = 12


def budget(levels, *, node=1.0, level=1.0, largest=12):
    """Return a budget in which a node, and extending one, cost so many ms on top of ten."""
    return Budget(
        RankRates(levels=levels, positions=100, source="counted"),
        Costs(
            verify=Curve.of([(1, 10.0), (largest, 10.0 + node * (largest - 1))]),
            begin=1.0,
            level=Curve.of([(1, 1.0), (10, 1.0 + 9 * level)]),
            rest=0.5,
            context=8,
        ),
    )


@st.composite
def budgets(draw):
    """Some rates that leave nothing to other ranks, zeros among them, and some costs."""
    levels = []
    for _ in range(draw(st.integers(1, 3))):
        weights = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
        levels.append(tuple(sorted((w / sum(weights) for w in weights), reverse=True)))
    return budget(levels, node=draw(st.floats(0, 3)), level=draw(st.floats(0, 3)))


def build(strategy, settings, target=None):
    return strategy.build(strategy.config(**settings), BuildContext(target))


class Believing:
    """A drafter whose draft probabilities are the rates of the level, and its tokens the ranks."""

    def __init__(self, levels):
        self.sampling = Sampling.of([SamplingParams()], "cpu")
        self.root = torch.zeros(1, dtype=torch.int64)
        self._levels = levels
        self._depths = []

    def begin(self):
        return self._logits([0])

    def expand(self, tokens, parents):
        new = [1 + (self._depths[parent] if parent >= 0 else 0) for parent in parents[0].tolist()]
        self._depths += new
        return self._logits(new)

    def _logits(self, depths):
        rows = torch.full((1, len(depths), VOCAB), -math.inf, dtype=torch.float64)
        for row, depth in enumerate(depths):
            level = torch.tensor(self._levels[depth], dtype=torch.float64)
            rows[0, row, : len(level)] = level.log()
        return rows


def drafted_paths(builder, levels):
    """Return the rank paths of the tree that a builder drafts."""
    draws = UniformDraws(torch.zeros(1, max(1, builder.uniforms)))
    tree = builder.build(Believing(levels), draws)
    paths = [()]
    for parent, token in zip(
        tree.parents[0, 1:].tolist(), tree.tokens[0, 1:].tolist(), strict=True
    ):
        paths.append((*paths[parent], token))
    return paths[1:]


def expected_tokens(levels, paths):
    """Return the tokens of a cycle, over every way in which the text may go on."""
    paths, total = set(paths), 0.0
    for ranks in itertools.product(*(range(len(level)) for level in levels)):
        chance = math.prod(level[rank] for level, rank in zip(levels, ranks, strict=True))
        accepted = next((d for d in range(len(ranks)) if ranks[: d + 1] not in paths), len(ranks))
        total += chance * (1 + accepted)
    return total


@settings(max_examples=40)
@given(budgets())
def test_static_options_are_trees_that_bring_and_cost_what_is_said(given):
    levels, seen = given.rates.levels, set()
    for option in static_options(given):
        tree = build(STATIC, option.settings)
        assert (tree.shape.nodes, tree.shape.depth) == (option.nodes, option.depth)
        assert option.tokens == pytest.approx(expected_tokens(levels, tree.topology.paths[1:]))
        extended = [len(level.parents) for level in tree.topology.levels[1:]]
        assert option.milliseconds == pytest.approx(given.costs.cycle(option.nodes, extended))
        assert (option.nodes, option.depth) not in seen
        seen.add((option.nodes, option.depth))
    assert seen
    assert max(nodes for nodes, _ in seen) <= given.costs.verify.largest


@settings(max_examples=20)
@given(budgets(), st.integers(1, 4))
def test_dynamic_options_are_trees_that_bring_and_cost_what_is_said(given, width):
    levels = given.rates.levels
    options = list(dynamic_options(given, [width]))
    assert {option.depth for option in options} == set(range(1, len(levels) + 1))
    for option in options:
        tree = build(DYNAMIC, option.settings)
        assert (tree.shape.nodes, tree.shape.depth) == (option.nodes, option.depth)
        assert tree.shape.siblings == width
        paths = drafted_paths(tree, levels)
        assert option.tokens == pytest.approx(expected_tokens(levels, paths))
        extended = [width] * (option.depth - 1)
        assert option.milliseconds == given.costs.cycle(option.nodes, extended)


@given(budgets())
def test_both_builders_take_the_best_of_their_options(given):
    static = build(STATIC, {"size": "auto"}).fit(given)
    assert static.chosen.rate == max(option.rate for option in static_options(given))
    assert (static.builder.shape.nodes, static.builder.shape.depth) == (
        static.chosen.nodes,
        static.chosen.depth,
    )
    dynamic = build(DYNAMIC, {"size": "auto"}).fit(given)
    assert dynamic.chosen.rate == max(option.rate for option in dynamic_options(given, WIDTHS))
    assert dynamic.builder.config == DynamicConfig(**dynamic.chosen.settings)


LEVELS = ((0.6, 0.2, 0.1), (0.5, 0.2, 0.1), (0.4, 0.2, 0.1))


def test_where_nodes_and_levels_are_dear_trees_are_small():
    def sizes(**costs):
        found = [
            build(strategy, {"size": "auto"}).fit(budget(LEVELS, **costs)).chosen
            for strategy in (STATIC, DYNAMIC)
        ]
        return [(one.nodes, one.depth) for one in found]

    assert sizes(node=20, level=20) == [(2, 1), (2, 1)]
    assert all(nodes > 8 and depth > 1 for nodes, depth in sizes(node=0, level=0))


@pytest.mark.parametrize("sampling", ["top-k", "without-replacement"])
def test_a_fitted_static_tree_is_drawn_as_the_spec_says(sampling):
    fit = build(STATIC, {"size": "auto", "sampling": sampling}).fit(budget(LEVELS, node=0))
    assert fit.builder.sampling == Law.named(sampling)
    assert fit.chosen.settings["sampling"] == sampling
    again = build(STATIC, fit.chosen.settings)
    assert (again.topology, again.sampling) == (fit.builder.topology, fit.builder.sampling)
    check_tree_builder(fit.builder)


def test_a_given_top_k_is_kept():
    fit = build(DYNAMIC, {"size": "auto", "top_k": 3}).fit(budget(LEVELS, node=0))
    assert fit.builder.config.top_k == 3
    check_tree_builder(fit.builder)


def test_a_dynamic_tree_gets_no_more_children_than_there_are_tokens():
    target = TargetInfo("few", hidden_size=4, vocab_size=3, layers=1, max_positions=64)
    levels = (tuple([0.1] * 10),) * 2
    with pytest.raises(IncompatibleError, match=r"tree\.top_k is 10"):
        build(DYNAMIC, {"size": "auto"}, target)
    fit = build(DYNAMIC, {"size": "auto", "top_k": 3}, target).fit(budget(levels, node=0))
    assert fit.builder.config.top_k == 3


@pytest.mark.parametrize("strategy", [STATIC, DYNAMIC])
def test_only_a_tree_of_size_auto_is_fitted(strategy):
    assert not isinstance(build(strategy, {}), FittedTree)
    auto = build(strategy, {"size": "auto"})
    assert isinstance(auto, FittedTree)
    check_tree_builder(auto)


@pytest.mark.parametrize("strategy", [STATIC, DYNAMIC])
def test_there_is_no_fit_where_only_the_root_can_be_verified(strategy):
    narrow = budget(LEVELS)
    costs = narrow.costs.model_copy(update={"verify": Curve.of([(1, 10.0)])})
    assert build(strategy, {"size": "auto"}).fit(Budget(narrow.rates, costs)) is None


@given(st.integers(1, 60))
def test_a_dynamic_tree_has_a_possible_size_until_it_is_fitted(top_k):
    tree = build(DYNAMIC, {"size": "auto", "top_k": top_k})
    assert (tree.config.top_k, tree.config.depth) == (top_k, 6)


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (StaticConfig, {"size": 7}, "auto"),
        (StaticConfig, {"size": "auto", "tree": "auto"}, "leave out either 'size' or 'tree'"),
        (StaticConfig, {"size": "auto", "branching": [2]}, "either 'size' or 'branching'"),
        (DynamicConfig, {"size": "auto", "nodes": 9}, "leave out either 'size' or 'nodes'"),
        (DynamicConfig, {"size": "auto", "nodes": 9, "depth": 2}, "or 'depth' and 'nodes'"),
    ],
)
def test_a_size_of_ones_own_beside_auto_is_refused(config, given, message):
    with pytest.raises(ValidationError, match=message):
        config(**given)
