"""Kernels and SDPA over rows in blocks, against the naive twin over the same rows in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.cache.store import BLOCK, Step
from eagle.plugin.roles import Scores
from eagle_plugins.attention.naive import naive_attention
from eagle_plugins.attention.sdpa import Sdpa
from eagle_plugins.attention.tiling import Tiling
from eagle_plugins.attention.triton import Triton

pytest.importorskip("triton", reason="Triton is not installed")
from eagle_plugins.attention import prompt_kernel, triton_kernel
from tests.interpreted import quick as quick
from tests.plugins.attention.test_triton import (
    CUDA,
    CUDA_HERE,
    DEVICES,
    TOLERANCE,
    Shape,
    backend_of,
    make,
    poison,
    shapes,
    tickets_of,
)


def in_blocks(keys, values, live, seed=0):
    """Return stores in which slots' rows lie in blocks in any order, and their table.

    Whatever no slot has is NaN, block 0 and the ends of blocks included.
    """
    slots, heads, _, size = keys.shape
    count = -(-max(live) // BLOCK) + 1
    order = torch.randperm(slots * count, generator=torch.Generator().manual_seed(seed)) + 1
    table = order.view(slots, count).int()
    stores = []
    for dense in (keys, values):
        store = torch.full((heads, (1 + slots * count) * BLOCK, size), torch.nan).to(dense)
        for slot, rows in enumerate(live):
            row = torch.arange(rows)
            place = table[slot, row // BLOCK].long() * BLOCK + row % BLOCK
            store[:, place.to(dense.device)] = dense[slot, :, :rows]
        stores.append(store[None])
    return *stores, table.to(keys.device)


def close(found, expected, dtype):
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= TOLERANCE[dtype]


WINDOWS = st.sampled_from([None, None, 1, 3, 17, 40, 200])
CAPS = st.sampled_from([None, None, 0.7, 30.0])


def sinks_for(query, seed):
    """Return a sink for each query head."""
    made = torch.randn(query.shape[1], generator=torch.Generator().manual_seed(seed))
    return made.to(query.device, query.dtype)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=12, deadline=None)
@given(shape=shapes(), window=WINDOWS, softcap=CAPS, sinks=st.booleans())
def test_the_tree_kernel_finds_rows_in_blocks(device, shape, window, softcap, sinks):
    shape = shape if window is None else replace(shape, earlier=0)
    query, keys, values, lengths, tail = make(shape, device)
    options = {
        "positions": (lengths[:, None] + tail.sum(2) - 1).contiguous() if window else None,
        "window": window,
        "softcap": softcap,
        "sinks": sinks_for(query, shape.seed) if sinks else None,
    }
    live = [length + tail.shape[2] for length in shape.lengths]
    *stores, table = in_blocks(keys, values, live, shape.seed)
    tickets, scale = tickets_of((query, keys), shape.tiling), shape.head_dim**-0.5
    with poison():
        found = triton_kernel.launch(
            query, *stores, lengths, tail, tickets, scale, shape.tiling, table, BLOCK, **options
        )
    assert not tickets.any()
    expected = naive_attention(query, keys, values, lengths, tail, scale, **options)
    close(found, expected, shape.dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("splits", [1, 3])
def test_the_tree_kernel_reads_no_block_before_the_window(device, splits):
    tiling = Tiling(16, 16, splits, 4, 2)
    shape = Shape([200], 3, 0, 1, 2, 64, torch.float32, tiling, seed=2)
    query, keys, values, lengths, tail = make(shape, device)
    keys[:, :, :160] = values[:, :, :160] = torch.nan  # a step begins there, and one before 181
    *stores, table = in_blocks(keys, values, [203])
    table[:, 0] = 2**20  # nor what the table says of the blocks before
    options = {"positions": lengths[:, None] + tail.sum(2) - 1, "window": 20}
    inputs, tickets = (query, *stores, lengths, tail), tickets_of((query, keys), tiling)
    found = triton_kernel.launch(*inputs, tickets, 0.1, tiling, table, BLOCK, **options)
    expected = naive_attention(query, keys, values, lengths, tail, 0.1, **options)
    close(found, expected, torch.float32)


def packed(pieces, heads, groups, size, dtype, device, seed=0):
    """Random entries of pieces ``(slot, committed rows, entries)``, and all that they see."""
    generator = torch.Generator().manual_seed(seed)
    slots, span = 1 + max(p[0] for p in pieces), max(sum(p[1:]) for p in pieces)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    keys, values = randn(2, slots, heads, span, size)
    query = randn(1, sum(p[2] for p in pieces), heads * groups, size).transpose(1, 2)
    live = [0] * slots
    for slot, start, count in pieces:
        live[slot] = start + count
    return query, keys, values, live


def expected_of(query, keys, values, pieces, scale, window=None, **options):
    found, first = [], 0
    for slot, start, count in pieces:
        lengths = torch.tensor([start], device=query.device)
        step = Step.chain(lengths, count, start + count)
        within = {"window": window, "positions": step.positions}
        own = query[:, :, first : first + count], keys[slot, None], values[slot, None]
        found.append(naive_attention(*own, lengths, step.tail, scale, **within, **options))
        first += count
    return torch.cat(found, 1)


PIECES = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 15, 16, 63, 64, 70]), st.sampled_from([1, 2, 16, 17, 40])),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=16, deadline=None)
@given(
    sizes=PIECES,
    groups=st.sampled_from([1, 3]),
    size=st.sampled_from([64, 80]),
    blocks=st.sampled_from([(16, 16), (32, 16), (16, 32), (64, 64)]),
    half=st.booleans(),
    window=WINDOWS,
    softcap=CAPS,
    sinks=st.booleans(),
    spare=st.sampled_from([(0, 0), (0, 5), (2, 0), (3, 70)]),
    seed=st.integers(0, 999),
)
def test_the_prompt_kernel_agrees_with_the_naive_twin(
    device, sizes, groups, size, blocks, half, window, softcap, sinks, spare, seed
):
    dtype = torch.float16 if half else torch.float32
    if CUDA_HERE and not half:
        blocks = (16, 16)  # larger ones take the compiler minutes
    slots = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    pieces = tuple((slot, *own) for slot, own in zip(slots, sizes, strict=True))
    query, keys, values, live = packed(pieces, 2, groups, size, dtype, device, seed)
    *stores, table = in_blocks(keys, values, live, seed)
    step = Step.packed(pieces, torch.device(device))
    options = {"window": window, "softcap": softcap}
    options["sinks"] = sinks_for(query, seed) if sinks else None
    # A captured pass has room for more segments, which are empty, and for more entries.
    empty, padding = spare
    last = torch.tensor([len(pieces) - 1] * empty, dtype=torch.int64, device=device)
    slots_of = torch.cat((step.segments.slots, step.segments.slots[last]))
    offsets = step.segments.offsets
    count = offsets[-1:]
    with poison():
        found = prompt_kernel.launch(
            torch.cat(
                (query, torch.full_like(query[:, :, :1], torch.nan).repeat(1, 1, padding, 1)), 2
            ),
            *stores,
            torch.cat((step.lengths, step.lengths[last])),
            torch.cat((offsets, count.repeat(empty))),
            table[slots_of],
            0.1,
            Tiling(*blocks, 1, 4, 2),
            BLOCK,
            **options,
        )
    assert not found[:, int(count) :].any(), "what belongs to nobody is zero"
    close(found[:, : int(count)], expected_of(query, keys, values, pieces, 0.1, **options), dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_the_prompt_kernel_reads_no_block_before_the_window(device):
    pieces = ((1, 200, 30), (0, 0, 40))
    query, keys, values, live = packed(pieces, 2, 2, 64, torch.float32, device)
    # The first entry's window begins at row 181, so a step over rows begins at 176.
    keys[1, :, :176] = values[1, :, :176] = torch.nan
    *stores, table = in_blocks(keys, values, live)
    table = table[[1, 0]]
    table[0, :2] = 2**20  # nor what the table says of the blocks before
    offsets = torch.tensor([0, 30, 70], dtype=torch.int32, device=device)
    lengths, tiling = torch.tensor([200, 0], device=device), Tiling(16, 16, 1, 4, 2)
    found = prompt_kernel.launch(
        query, *stores, lengths, offsets, table, 0.1, tiling, BLOCK, window=20
    )
    close(found, expected_of(query, keys, values, pieces, 0.1, 20), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA_HERE, reason="no CUDA device")
@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_long_prompts_agree_on_cuda(device, size, dtype):
    pieces = ((2, 0, 300), (0, 513, 200), (1, 64, 1))
    query, keys, values, live = packed(pieces, 2, 4, size, dtype, device)
    *stores, table = in_blocks(keys, values, live)
    step = Step.packed(pieces, torch.device(device))
    step = replace(step, table=table[step.segments.slots])
    backend = backend_of(Triton)
    for window in (None, 100):
        options = {"softcap": 5.0, "sinks": sinks_for(query, 1)} if window else {}
        plan = backend.plan(step, 8, 2, dtype, window)
        found = backend.attend(query, *stores, plan, 0.1, Scores(**options))
        close(found, expected_of(query, keys, values, pieces, 0.1, window, **options), dtype)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("kind", [Sdpa, Triton])
def test_backends_attend_in_packed_passes(kind, paged, modified, window):
    device = "cuda" if CUDA_HERE else "cpu"
    pieces = ((2, 0, 5), (0, 66, 3), (3, 9, 1))
    query, keys, values, live = packed(pieces, 2, 2, 64, torch.float32, device)
    step = Step.packed(pieces, torch.device(device))
    stores = keys, values
    if paged:
        *stores, table = in_blocks(keys, values, live)
        step = replace(step, table=table[step.segments.slots])
    backend = backend_of(kind)
    options = {"softcap": 0.7, "sinks": sinks_for(query, 1)} if modified else {}
    plan = backend.plan(step, 4, 2, torch.float32, window)
    scores = Scores(**options) if modified else None
    found = backend.attend(query, *stores, plan, 0.1, scores)
    expected = expected_of(query, keys, values, pieces, 0.1, window, **options)
    close(found, expected, torch.float32)


@pytest.mark.parametrize("window", [None, 5])
def test_a_long_pass_over_blocks_reads_nothing_of_others(window, monkeypatch):
    monkeypatch.setattr("eagle_plugins.attention.triton.MAX_NODES", 4)
    device = "cuda" if CUDA_HERE else "cpu"
    tiling = Tiling(16, 16, 1, 4, 2)
    shape = Shape([70, 9], 6, 0 if window else 2, 2, 2, 64, torch.float32, tiling, seed=1)
    query, keys, values, lengths, tail = make(shape, device)
    width = tail.shape[2]
    *stores, table = in_blocks(keys, values, [70 + width, 9 + width])
    rows = lengths[:, None] + torch.arange(6, device=device)
    positions = lengths[:, None] + tail.sum(2) - 1
    step = Step(positions, rows, lengths, tail, 2 * BLOCK, table=table)
    backend = backend_of(Triton)
    options = {"softcap": 0.7, "sinks": sinks_for(query, 1)} if window else {}
    plan = backend.plan(step, 4, 2, torch.float32, window)
    found = backend.attend(query, *stores, plan, 0.1, Scores(**options))
    within = {"window": window, "positions": positions}
    expected = naive_attention(query, keys, values, lengths, tail, 0.1, **within, **options)
    close(found, expected, torch.float32)
