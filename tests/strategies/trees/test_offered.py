"""Which tree is drafted for what is offered."""

from __future__ import annotations

import pytest

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
