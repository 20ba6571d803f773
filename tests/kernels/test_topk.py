"""The largest of many logits on a CPU: what PyTorch's argmax and topk say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.kernels.topk import argmax, top_k


def _logits(rows, vocab, dtype, seed, levels):
    # Of few different values, so that many are equal.
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels, (2, rows, vocab), generator=generator).to(dtype) / 4


@settings(max_examples=60)
@given(
    rows=st.integers(1, 5),
    vocab=st.sampled_from([1, 7, 1000, 49152]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 999),
    levels=st.sampled_from([1, 3, 10_000]),
)
def test_the_first_of_the_largest_is_found(rows, vocab, dtype, seed, levels):
    logits = _logits(rows, vocab, dtype, seed, levels)
    found = argmax(logits)
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    assert found.dtype == torch.int64
    assert torch.equal(found, first)


def test_nan_is_the_largest():
    logits = torch.tensor([[1.0, torch.nan, torch.inf], [-torch.inf, -torch.inf, -torch.inf]])
    assert argmax(logits).tolist() == [1, 0]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 5),
    vocab=st.sampled_from([7, 64, 1000, 1024, 32000, 49152]),
    k=st.integers(1, 7),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
    levels=st.sampled_from([1, 3, 10_000]),
)
def test_the_k_largest_are_found(rows, vocab, k, dtype, seed, levels):
    logits = _logits(rows, vocab, dtype, seed, levels)
    values, indices = top_k(logits, k)
    assert torch.equal(values, logits.topk(k).values)
    assert torch.equal(logits.gather(-1, indices), values)
    assert all(len(set(row)) == k for row in indices.flatten(0, 1).tolist())


@pytest.mark.parametrize("vocab", [1000, 1024])
def test_broken_logits_have_valid_indices(vocab):
    logits = torch.full((1, 2, vocab), -torch.inf)
    logits[0, 1, 900] = torch.nan
    values, indices = top_k(logits, 3)
    assert values[0, 1, 0].isnan()
    assert indices[0, 1, 0] == 900
    assert all(len({i for i in row if 0 <= i < vocab}) == 3 for row in indices[0].tolist())
