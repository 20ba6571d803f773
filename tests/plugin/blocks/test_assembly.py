from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin import keep_best, tree_of
from eagle.plugin.blocks.topology import Topology


def test_depths_and_ranks_follow_from_parents():
    topology = Topology.from_paths([[0], [1], [2], [0, 0], [2, 0], [2, 1], [2, 1, 0]])
    parents = torch.tensor([topology.parents, topology.parents])
    tree = tree_of(torch.arange(16).view(2, 8), parents, topology.depth)
    assert tree.depths.tolist() == [list(topology.depths)] * 2
    assert tree.ranks.tolist() == [list(topology.orders)] * 2
    assert tree.ancestors[1, 7].tolist() == [True, False, False, True, False, False, True, True]


def test_padding_has_no_rank_and_sees_itself_alone():
    tree = tree_of(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[-1, 0, -1, -1]]), 1)
    assert tree.ranks.tolist() == [[0, 0, 0, 0]]
    assert tree.ancestors[0, 2:].int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_is_kept_are_the_candidates_of_highest_value_and_connected(rng):
    count, nodes, slots = rng.randint(1, 12), 0, rng.randint(1, 2)
    nodes = rng.randint(1, count)
    parents, values, paths = [], [], []
    for _ in range(slots):
        above = [rng.randint(-1, number - 1) for number in range(count)]
        value, path = [], []
        for number, parent in enumerate(above):
            most = value[parent] if parent >= 0 else 0
            # Siblings come by value, and many values are equal.
            before = [value[n] for n in range(number) if above[n] == parent]
            value.append(min([most, *before]) - rng.choice([0, 0, 1, 2]))
            path.append((*(path[parent] if parent >= 0 else ()), number))
        parents.append(above)
        values.append(value)
        paths.append(path)
    tokens = torch.arange(count).expand(slots, -1)
    root = torch.full((slots,), 99)
    made = torch.tensor(values, dtype=torch.float32)
    tree = keep_best(root, tokens, made, torch.tensor(parents), nodes, count)
    assert tree.tokens.shape == (slots, nodes + 1)
    for slot in range(slots):
        found = [()]
        for node in range(1, nodes + 1):
            above = found[int(tree.parents[slot, node])]
            found.append((*above, int(tree.tokens[slot, node])))
            assert int(tree.depths[slot, node]) == len(found[-1])
        assert set(found[1:]) <= set(paths[slot]), "what is kept is connected"
        kept = sorted(values[slot][path[-1]] for path in found[1:])
        assert kept == sorted(values[slot])[count - nodes :]
        assert tree.tokens[slot, 0] == 99
