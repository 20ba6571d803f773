"""Trees that follow the number of slots and what is accepted; all of it on the host."""

from __future__ import annotations

from eagle.plugin import (
    Budget,
    BuildContext,
    Costs,
    Curve,
    FollowsSlots,
    Law,
    RankRates,
    Seen,
    Topology,
)
from eagle.testing import check_tree_builder
from eagle_plugins.trees.following import FollowingTree
from eagle_plugins.trees.static import STATIC, StaticConfig

RATES = RankRates(levels=((0.7, 0.15), (0.6, 0.15), (0.5, 0.1)), positions=100, source="a test")
USUAL = Topology.from_paths([[0], [1], [0, 0], [0, 1], [0, 0, 0]])


def costs(node: float, plain: float = 10.0) -> Costs:
    """Return costs of cycles of which every node takes so much."""
    return Costs(
        verify=Curve.of((count, 10.0 + node * (count - 1)) for count in (1, 8)),
        begin=0.1,
        level=Curve.of([(1, 0.1)]),
        rest=0.1,
        context=64,
        plain=plain,
    )


def tree(**by_slots: float) -> FollowingTree:
    made = FollowingTree(USUAL, RATES)
    for slots, node in by_slots.items():
        made.learn(int(slots[1:]), costs(node))
    return made


def nodes(made: FollowingTree, active: int, committed: int | None = None) -> int:
    seen = Seen(active=active, committed=(committed,) * active)
    return made.alternatives[made.choose(seen)].shape.nodes


def test_keeps_the_contract_of_tree_builders():
    check_tree_builder(FollowingTree(USUAL, RATES), cycles=1)


def test_is_the_usual_tree_while_nothing_is_known_of_the_machine():
    made = tree()
    assert made.alternatives[0].topology == USUAL
    assert [nodes(made, active, 1) for active in (1, 8, 64)] == [6, 6, 6]


def test_more_slots_have_smaller_trees_and_in_the_end_none():
    made = tree(_1=0.1, _4=1.0, _8=12.0)
    sizes = [nodes(made, active) for active in (1, 3, 4, 5, 8, 99)]
    assert sizes[0] == 6
    assert 6 > sizes[1] == sizes[2] > 1
    assert sizes[3:] == [1, 1, 1]
    assert nodes(made, 1) == 6, "those that are left draft again"


def test_none_is_larger_than_the_usual_one():
    shapes = [one.shape for one in tree().alternatives]
    assert max(shape.nodes for shape in shapes) == USUAL.nodes
    assert max(shape.depth for shape in shapes) == USUAL.depth
    assert min(shape.nodes for shape in shapes) == 1
    assert len(set(shapes)) > 4


def test_stops_drafting_what_is_not_accepted_and_tries_again_later():
    made = tree(_1=2.0)
    before = nodes(made, 1)
    for _ in range(60):
        least = nodes(made, 1, 1)
        if least == 1:
            break
    assert before > least == 1
    again = [nodes(made, 1, 1) for _ in range(300)]
    assert max(again) > 1
    assert again.count(1) > 0.8 * len(again), "trying costs too much"


def test_drafts_more_where_more_is_accepted_than_was_measured():
    made = tree(_2=1.4)
    first = nodes(made, 2)
    for _ in range(40):
        last = nodes(made, 2, 3)  # all that three nodes in a row can give
    assert last > first


def test_does_not_change_for_a_trifle():
    made = tree(_1=0.1, _2=0.1)
    chosen = {nodes(made, 2, committed) for _ in range(50) for committed in (1, 3, 2, 4)}
    assert len(chosen) <= 2


def test_size_auto_follows_the_slots_under_shared_noise_and_only_there():
    budget = Budget(RATES, costs(0.1))
    for sampling, follows in (("shared-noise", True), ("top-k", False)):
        builder = STATIC.build(StaticConfig(size="auto", sampling=sampling), BuildContext())
        fit = builder.fit(budget)
        assert isinstance(fit.builder, FollowingTree) is follows
        assert fit.builder.shape.nodes == fit.chosen.nodes
        assert fit.builder.laws <= builder.laws


def test_by_slots_keeps_one_size_where_texts_would_depend_on_the_batch():
    fixed = STATIC.build(StaticConfig(size="by-slots", branching=(2, 1)), BuildContext())
    assert not isinstance(fixed, FollowsSlots)
    config = StaticConfig(size="by-slots", sampling="shared-noise", branching=(2, 1))
    builder = STATIC.build(config, BuildContext())
    assert builder.sampling == Law.SHARED_NOISE
    assert builder.follow(RATES).shape == builder.shape


def test_few_trees_are_one_of_each_size():
    usual = Topology.from_branching([4, 3, 2])
    few, all_ = FollowingTree(usual, RATES, few=True), FollowingTree(usual, RATES)
    sizes = [one.shape.nodes for one in few.alternatives]
    assert sizes[:2] == [usual.nodes, 1]
    assert len(set(sizes[1:])) == len(sizes[1:]) < len(all_.alternatives) - 1
    assert {one.topology for one in few.alternatives} <= {one.topology for one in all_.alternatives}
