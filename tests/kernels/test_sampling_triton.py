"""The cycle's small kernels against PyTorch: interpreted on a CPU, compiled where there is CUDA."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.cache.compaction import Mover
from eagle.kernels.drawing import _draw, draw
from eagle.kernels.topk import _top_k
from tests.interpreted import quick as quick

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no Triton here"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [6, 64])
@pytest.mark.parametrize("paged", [False, True])
def test_rows_of_accepted_paths_come_to_the_front(dtype, size, paged):
    # Two slots of 16 rows, behind each other or in blocks of 4 in any order.
    stores = [torch.rand(3, 36, size, device=DEVICE).to(dtype) for _ in range(4)]
    table = torch.tensor([[7, 2, 8, 1], [3, 6, 4, 5]], dtype=torch.int32, device=DEVICE)
    before = [store.clone() for store in stores]
    lengths = torch.tensor([3, 7], device=DEVICE)
    path = torch.tensor([[0, 2, 5, 0], [0, 1, 4, 6]], device=DEVICE)
    Mover(stores)(lengths, path, 16, table if paged else None)

    def rows(slot):
        if not paged:
            return torch.arange(16, device=DEVICE) + 16 * slot
        return (table[slot].long()[:, None] * 4 + torch.arange(4, device=DEVICE)).flatten()

    for store, old in zip(stores, before, strict=True):
        for slot, (length, accepted) in enumerate([(3, [0, 2, 5]), (7, [0, 1, 4, 6])]):
            new, own = store[:, rows(slot)], old[:, rows(slot)]
            expected = own[:, [length + node for node in accepted]]
            end = length + len(accepted)
            assert torch.equal(new[:, :length], own[:, :length])
            assert torch.equal(new[:, length:end], expected)
            assert torch.equal(new[:, length + 7 :], own[:, length + 7 :])


@settings(max_examples=15)
@given(
    rows=st.integers(1, 3),
    vocab=st.integers(4, 2500),
    k=st.integers(1, 4),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_the_largest_logits_are_found(rows, vocab, k, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, rows, vocab, generator=generator).to(DEVICE, dtype)
    values, indices = _top_k(logits, k)
    assert torch.equal(values, logits.topk(k).values)
    assert torch.equal(logits.gather(-1, indices), values)
    assert all(len(set(row)) == k for row in indices[0].tolist())


def test_equal_and_broken_logits_give_different_valid_indices():
    logits = torch.zeros(1, 3, 1500, device=DEVICE)
    logits[0, 1] = -torch.inf
    logits[0, 2, 1400] = torch.nan
    values, indices = _top_k(logits, 3)
    assert indices[0, 0].tolist() == [0, 1, 2]
    assert int(indices.min()) >= 0
    assert int(indices.max()) < 1500
    assert values[0, 2, 0].isnan()
    assert indices[0, 2, 0] == 1400


@settings(max_examples=30)
@given(
    vocab=st.integers(2, 2500),
    zeros=st.floats(0, 0.99),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_draws_are_those_of_the_cumulative_sum(vocab, zeros, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 2, vocab, generator=generator, dtype=dtype)
    weights = weights * (torch.rand(weights.shape, generator=generator) > zeros)
    uniforms = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    found = _draw(weights.to(DEVICE), uniforms.to(DEVICE)).cpu()
    assert torch.equal(found, draw(weights, uniforms))


def test_draws_at_the_ends_have_positive_weight():
    weights = torch.zeros(6, 3000, device=DEVICE)
    weights[0, 5] = weights[1, 2999] = weights[2, 1024] = 0.3
    weights[3] = 1 / 3
    weights[5, 0] = torch.nan
    for uniform in (0.0, 1 - 2.0**-53):
        drawn = _draw(weights, torch.full((6,), uniform, dtype=torch.float64, device=DEVICE))
        assert drawn[:3].tolist() == [5, 2999, 1024]
        assert drawn[3] == (0 if uniform == 0 else 2999)
        assert drawn[4] == 0  # nothing to draw from
        assert 0 <= int(drawn[5]) < 3000
