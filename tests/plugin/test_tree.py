"""Ancestor masks against a walk up the parents, and finding children."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle.plugin.tree import TokenTree, ancestor_mask


@st.composite
def parent_lists(draw):
    size = draw(st.integers(1, 12))
    return [-1] + [draw(st.integers(-1, node - 1)) for node in range(1, size)]


def _walk(parents, node):
    while node >= 0:
        yield node
        node = parents[node]


@given(parent_lists())
def test_ancestor_mask_agrees_with_walking_up(parents):
    mask = ancestor_mask(torch.tensor([parents]), len(parents))[0]
    for node in range(len(parents)):
        assert mask[node].nonzero().flatten().tolist() == sorted(_walk(parents, node))


def test_child_is_found_by_rank_and_absent_ranks_are_reported():
    parents = torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, 2]])
    ranks = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]])
    tree = TokenTree(parents, parents, parents, ranks, ancestor_mask(parents, 3))
    index, exists = tree.child(torch.tensor([0, 0]), 1)
    assert (index.tolist(), exists.tolist()) == ([2, 0], [True, False])


def test_padding_is_nobodys_child():
    parents = torch.tensor([[-1, -1]])
    zeros = torch.zeros_like(parents)
    tree = TokenTree(zeros, parents, zeros, zeros, ancestor_mask(parents, 1))
    assert not tree.child(torch.tensor([0]), 0)[1].item()
