"""Tilings fit the device, and use it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle_plugins.attention.tiling import MAX_SPLITS, choose_tiling, most_tiles

SHARED_MEMORY = 227 * 1024  # of an H100's multiprocessor, the most that one program may take
# Multiprocessors and shared memory of an H100, an A100, an RTX 4090 and a small GPU of that kind.
DEVICES = [(132, SHARED_MEMORY), (108, 163 * 1024), (128, 99 * 1024), (24, 99 * 1024)]


def choose(**changes):
    shape = {"slots": 1, "kv_heads": 8, "rows": 26, "head_dim": 128, "span": 4096}
    common = {"dtype": torch.bfloat16, "multiprocessors": 132, "shared_memory": SHARED_MEMORY}
    return choose_tiling(**(shape | common | changes))


@given(
    slots=st.integers(1, 128),
    kv_heads=st.sampled_from([1, 3, 8, 32, 64]),
    rows=st.integers(1, 128 * 16),
    head_dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    span=st.integers(1, 100_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    device=st.sampled_from(DEVICES),
)
def test_every_tiling_can_be_launched(slots, kv_heads, rows, head_dim, span, dtype, device):
    tiling = choose_tiling(
        slots=slots,
        kv_heads=kv_heads,
        rows=rows,
        head_dim=head_dim,
        span=span,
        dtype=dtype,
        multiprocessors=device[0],
        shared_memory=device[1],
    )
    for block in (tiling.block_m, tiling.block_n):
        assert block >= 16
        assert block & (block - 1) == 0, "not a power of two"
    assert 1 <= tiling.splits <= min(MAX_SPLITS, -(-span // tiling.block_n))
    if tiling.splits > 1:
        assert slots * kv_heads * -(-rows // tiling.block_m) <= most_tiles(device[0])
    width = 1 << (head_dim - 1).bit_length()
    rows_held = tiling.block_m + 2 * tiling.num_stages * tiling.block_n
    assert rows_held * width * dtype.itemsize <= device[1]


def test_few_heads_are_split_until_the_device_is_busy():
    assert choose(kv_heads=1).splits == MAX_SPLITS
    assert 132 - 32 < 32 * choose(kv_heads=32).splits <= 132
    assert 132 - 32 < 32 * choose(kv_heads=32, rows=1).splits <= 132
    assert 2 * 132 < 8 * choose(kv_heads=8, rows=1).splits <= 3 * 132
    assert choose(slots=64, kv_heads=32).splits == 1


@pytest.mark.parametrize(("rows", "block_m"), [(1, 16), (26, 32), (61, 64), (2000, 128)])
def test_tiles_are_no_larger_than_they_must_be(rows, block_m):
    assert choose(rows=rows).block_m == block_m


def test_a_little_work_is_dealt_out_in_small_tiles():
    assert choose(kv_heads=3, rows=78, head_dim=64, span=1024).block_m == 32
    assert choose(kv_heads=3, rows=78, head_dim=64, span=65536).block_m == 128
