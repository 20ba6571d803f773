"""Which tree is drafted for what is offered."""

from __future__ import annotations

import pytest

from eagle.errors import IncompatibleError
from eagle.plugin import Seen, default_registry
from eagle.spec import DecoderSpec, resolve
from eagle.testing import check_tree_builder


@pytest.fixture(scope="module")
def tree():
    return resolve(DecoderSpec(head="suffix", tree="offered"), default_registry()).tree


def test_the_contract_of_a_tree_is_kept(tree):
    check_tree_builder(tree)


@pytest.mark.parametrize(
    ("offered", "depth"),
    [
        ((), 0),
        ((0,), 0),
        ((1,), 4),
        ((9,), 4),
        ((10,), 10),
        ((None, 25, None), 10),
        ((0, 0, 12), 0),
        ((0, 3, None, 12), 10),
    ],
)
def test_the_deepest_tree_of_use_is_taken_where_half_of_the_slots_are_offered_any(
    offered, depth, tree
):
    seen = Seen(len(offered), (None,) * len(offered), offered)
    assert tree.alternatives[tree.choose(seen)].shape.depth == depth


BEST = {"name": "best-first", "nodes": 6, "depth": 3, "siblings": 2, "width": 2}
RACED = {"name": "static", "branching": [1], "sampling": "shared-noise"}


@pytest.mark.parametrize("of", [BEST, RACED], ids=["best-first", "static"])
def test_trees_that_draw_by_a_texts_noise_are_not_mixed_with_others(of):
    """Whether a cycle used the noise behind it would follow from that noise: it is biased.

    With two tokens and a tree of two nodes, P(second = 0 | first = 1) is 0.713 in place of 0.700.
    """
    mixed = DecoderSpec(head="suffix", tree={"name": "offered", "of": [of]})
    with pytest.raises(IncompatibleError, match="some draw by shared-noise and others do not"):
        resolve(mixed, default_registry())
    alike = {"name": "offered", "of": [of], "otherwise": RACED}
    assert resolve(DecoderSpec(head="suffix", tree=alike), default_registry()).lossless
