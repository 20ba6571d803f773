"""Masks and rows of a pass, and what compaction leaves behind."""

import pytest
import torch

from eagle.cache.store import Step, TreeCache
from eagle.plugin.tree import ancestor_mask


def _naive_mask(lengths, tail, span):
    mask = torch.zeros(len(lengths), 1, tail.shape[1], span, dtype=torch.bool)
    for slot, length in enumerate(lengths.tolist()):
        for entry in range(tail.shape[1]):
            mask[slot, 0, entry, : min(length, span)] = True
            for offset in range(tail.shape[2]):
                if length + offset < span:
                    mask[slot, 0, entry, length + offset] = tail[slot, entry, offset]
    return mask


def test_mask_agrees_with_the_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        width = int(torch.randint(1, 6, (), generator=generator))
        rows = width + int(torch.randint(0, 4, (), generator=generator))
        lengths = torch.randint(0, 20, (3,), generator=generator)
        tail = torch.rand(3, width, rows, generator=generator) < 0.5
        span = int(lengths.max()) + rows
        step = Step(tail[..., 0], tail[..., 0], lengths, tail, span)
        assert torch.equal(step.mask(), _naive_mask(lengths, tail, span))


def test_chain_step_is_causal_behind_the_committed_rows():
    step = Step.chain(torch.tensor([2]), 3, 6)
    assert step.positions.tolist() == [[2, 3, 4]]
    assert step.mask()[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
    ]


def test_tree_step_gives_siblings_one_position_and_separate_rows():
    parents = torch.tensor([[-1, 0, 0, 1]])
    step = Step.tree(torch.tensor([5]), torch.tensor([[0, 1, 1, 2]]), ancestor_mask(parents, 2), 10)
    assert step.positions.tolist() == [[5, 6, 6, 7]]
    assert step.rows.tolist() == [[5, 6, 7, 8]]


@pytest.mark.parametrize("slots", [1, 3])
def test_compact_moves_accepted_rows_to_the_front_and_leaves_committed_ones(slots):
    cache = TreeCache(
        layers=2,
        slots=slots,
        kv_heads=2,
        rows=16,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    for store in (*cache.keys, *cache.values):
        store.copy_(torch.rand(store.shape))
    before = [store.clone() for store in (*cache.keys, *cache.values)]
    lengths = torch.arange(4, 4 + slots)
    path = torch.tensor([[0, 2, 5]]).expand(slots, -1)
    cache.compact(lengths, path)
    for old, new in zip(before, (*cache.keys, *cache.values), strict=True):
        for slot, length in enumerate(lengths.tolist()):
            assert torch.equal(new[slot, :, :length], old[slot, :, :length])
            moved = old[slot][:, [length, length + 2, length + 5]]
            assert torch.equal(new[slot, :, length : length + 3], moved)


def test_write_to_one_slot_leaves_the_others():
    cache = TreeCache(
        layers=1,
        slots=2,
        kv_heads=1,
        rows=8,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    ones = torch.ones(1, 1, 3, 2)
    keys, _ = cache.write(0, ones, ones, Step.chain(torch.tensor([2]), 3, 6, torch.tensor([1])))
    assert keys.shape == (1, 1, 6, 2)
    assert cache.keys[0][0].sum() == 0
    assert cache.keys[0][1, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("slot", range(3))
def test_one_of_several_slots_reads_what_it_would_read_alone(slot):
    def cache(slots):
        return TreeCache(
            layers=1,
            slots=slots,
            kv_heads=2,
            rows=9,
            head_dim=4,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    several, alone = cache(3), cache(1)
    for store in (several.keys[0], several.values[0]):
        store.copy_(torch.rand(store.shape))
    before = several.keys[0].clone()
    alone.keys[0].copy_(several.keys[0][slot])
    alone.values[0].copy_(several.values[0][slot])
    for start, count in ((0, 4), (4, 2)):
        new = torch.rand(2, 1, 2, count, 4)
        lengths, span = torch.tensor([start]), start + count
        found = several.write(0, *new, Step.chain(lengths, count, span, torch.tensor([slot])))
        expected = alone.write(0, *new, Step.chain(lengths, count, span, torch.tensor([0])))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(several.keys[0][slot], alone.keys[0][0])
    assert torch.equal(several.values[0][slot], alone.values[0][0])
    others = [other for other in range(3) if other != slot]
    assert torch.equal(several.keys[0][others], before[others])
