"""Smaller trees for many slots, where the spec names no tree and the device is a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from eagle.plugin import BuildContext, FollowsSlots, Law, RankRates, Seen, Topology
from eagle.testing import check_tree_builder
from eagle_plugins.trees.narrowing import NarrowingTree
from eagle_plugins.trees.static import STATIC, StaticConfig

RATES = RankRates(
    levels=((0.7, 0.15, 0.05), (0.65, 0.15, 0.05), (0.6, 0.1), (0.55, 0.1), (0.5, 0.1)),
    positions=100,
    source="a test",
)
USUAL = Topology.from_branching([4, 2, 2])
SEEDED = {"sampled": True, "seeded": True}
GPU = BuildContext(device=torch.device("cuda"))


def narrowing(usual: Topology = USUAL, law: Law = Law.WITHOUT_REPLACEMENT) -> NarrowingTree:
    return NarrowingTree(usual, law, RATES)


def nodes(made: NarrowingTree, width: int, *, active: int = 1, **more: Any) -> int:
    seen = Seen(active=active, committed=(1,) * width, width=width, **more)
    return made.alternatives[made.choose(seen)].shape.nodes


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.TOP_K, Law.SHARED_NOISE])
def test_keeps_the_contract_of_tree_builders(law):
    check_tree_builder(narrowing(law=law), cycles=1)


def test_more_slots_have_smaller_trees():
    made = narrowing()
    assert [nodes(made, width) for width in (1, 4, 8, 16, 32, 64)] == [29, 29, 11, 11, 4, 4]


def test_a_cycle_over_many_slots_has_a_small_tree_though_few_are_active():
    assert nodes(narrowing(), 32, active=2) == 4


def test_the_active_slots_count_where_nobody_says_how_wide_the_cycle_is():
    made = narrowing()
    assert made.alternatives[made.choose(Seen(active=9, committed=()))].shape.nodes == 11


def test_given_seeds_have_one_tree_for_all_slots_as_they_say_another_text_with_another_tree():
    made, widths = narrowing(), (1, 8, 16, 32, 64)
    found = {
        slots: {nodes(made, width, **SEEDED, slots=slots) for width in widths if width <= slots}
        for slots in (1, 8, 16, 31, 32, 64)
    }
    assert found == {1: {29}, 8: {29}, 16: {11}, 31: {11}, 32: {4}, 64: {4}}


def test_a_seed_has_a_small_tree_where_many_may_and_nobody_says_how_many_slots_there_are():
    assert nodes(narrowing(), 64, **SEEDED) == 4


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.TOP_K])
def test_who_samples_without_a_seed_has_trees_by_the_width_whatever_the_number_of_slots(law):
    made = narrowing(law=law)
    for slots in (0, 8, 16, 64):
        found = [nodes(made, width, sampled=True, slots=slots) for width in (1, 7, 8, 16, 32, 64)]
        assert found == [29, 29, 11, 11, 4, 4]


@pytest.mark.parametrize("seeded", [False, True])
def test_by_noise_of_the_position_sampled_trees_follow_the_width_too(seeded):
    made = narrowing(law=Law.SHARED_NOISE)
    widths = (1, 4, 8, 16, 32, 64)
    found = [nodes(made, width, sampled=True, slots=64, seeded=seeded) for width in widths]
    assert found == [29, 29, 11, 11, 4, 4]


def test_trees_are_of_the_likeliest_paths_and_no_deeper_than_the_usual_one():
    eleven, four = narrowing().alternatives[1:]
    assert four.topology == Topology.from_paths([[0], [0, 0], [0, 0, 0]])
    assert eleven.shape.depth <= USUAL.depth
    promised = sum(chance for _, chance in RATES.likeliest(10, eleven.shape.depth))
    assert promised >= 0.97 * sum(chance for _, chance in RATES.likeliest(10, USUAL.depth))


def test_no_tree_is_larger_than_the_usual_one():
    made = narrowing(Topology.from_branching([2, 2]))
    assert [one.shape.nodes for one in made.alternatives] == [7, 4]
    assert [nodes(made, width) for width in (8, 16, 32)] == [7, 7, 4]


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.SHARED_NOISE])
@pytest.mark.parametrize("slots", [8, 16, 128])
@pytest.mark.parametrize("sampled", [False, True])
def test_what_it_foresees_is_what_it_chooses(law, slots, sampled):
    made = narrowing(law=law)
    for width in (1, 2, 4, 8, 16, 32, 64, 128):
        seen = Seen(active=width, committed=(1,) * width, width=width, sampled=sampled, slots=slots)
        chosen = {made.choose(seen), made.choose(replace(seen, seeded=sampled))}
        foreseen = made.foresee(width, sampled=sampled, slots=slots)
        assert sorted(foreseen) == sorted(chosen)


def test_it_foresees_two_trees_only_where_a_seed_makes_a_difference():
    made, widths = narrowing(), (1, 2, 4, 8, 16, 32, 64)
    found = {w: sorted(made.foresee(w, sampled=True, slots=64)) for w in widths}
    assert found == {1: [0, 2], 2: [0, 2], 4: [0, 2], 8: [1, 2], 16: [1, 2], 32: [2], 64: [2]}
    assert all(len(made.foresee(w, sampled=False, slots=64)) == 1 for w in widths)
    assert all(len(made.foresee(w, sampled=True, slots=8)) == 1 for w in (1, 2, 4))
    assert sorted(made.foresee(8, sampled=True, slots=8)) == [0, 1]


@pytest.mark.parametrize(
    ("settings", "context", "follows"),
    [
        ({}, GPU, True),
        ({"tree": "auto"}, GPU, True),
        ({"sampling": "top-k"}, GPU, True),
        ({"tree": "reference-25"}, GPU, False),
        ({"branching": (2, 1)}, GPU, False),
        ({}, BuildContext(device=torch.device("cpu")), False),
        ({}, BuildContext(), False),
    ],
)
def test_only_a_tree_that_nobody_named_becomes_smaller(settings, context, follows):
    builder = STATIC.build(StaticConfig(**settings), context)
    assert isinstance(builder, FollowsSlots) is follows
    if follows:
        made = builder.follow(RATES)
        assert made.shape == builder.shape
        assert made.laws <= builder.laws
