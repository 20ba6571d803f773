"""Compiled code writes to a cache in place, at any number of slots: it moves the new rows alone."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from eagle.cache.store import Pages, Step, TreeCache
from eagle.runtime.aot import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
CPU, SLOTS, ROWS, SIZE = torch.device("cpu"), 4, 320, 16


@torch.library.custom_op("eagle_tests::read", mutates_args=())
def read(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Stand for attention, of which the compiler knows no more than what it reads."""
    return query + keys[..., 0, 0].sum() + values[..., 0, 0].sum()


@read.register_fake
def _(query, keys, values):
    return torch.empty_like(query)


def cache_of(slots, paged):
    pages = Pages.whole(slots, ROWS, CPU) if paged else None
    return TreeCache(
        layers=2,
        slots=slots,
        kv_heads=2,
        rows=ROWS,
        head_dim=SIZE,
        dtype=torch.float32,
        device=CPU,
        pages=pages,
    )


def a_pass(cache, new, lengths, depths, ancestors, write):
    step = cache.locate(Step.tree(lengths, depths, ancestors, ROWS))
    for layer in range(2):
        keys, values = write(cache, layer, new, step)
        new = new + read(new, keys, values)
    return new


def now(cache, layer, new, step):
    return cache.write(layer, new, new * 2, step)


def through_an_index(cache, layer, new, step):
    """As it was written before, which compiled code copies the whole cache for."""
    for number, part in ((layer, new), (layer + 2, new * 2)):
        store = cache.stores[number].view(2, SLOTS, ROWS, SIZE).permute(1, 2, 0, 3)
        store[step.slots, step.rows] = part.transpose(1, 2)
    return cache.keys[layer], cache.values[layer]


def largest_buffer(write, slots, paged):
    """Return the numbers in the largest buffer that the compiled code of a pass allocates."""
    cache = cache_of(slots, paged)
    new, lengths = torch.rand(slots, 2, 3, SIZE), torch.arange(slots) * 7
    tree = torch.tensor([[0, 1, 1]]).expand(slots, -1), torch.ones(slots, 3, 3, dtype=torch.bool)
    torch._dynamo.reset()
    compiled = torch.compile(a_pass, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        expected = a_pass(cache, new, lengths, *tree, now)
        before = [store.clone() for store in cache.stores]
        found, (code, *_) = run_and_get_code(compiled, cache, new, lengths, *tree, write)
    torch.testing.assert_close(found, expected)
    for store, old in zip(cache.stores, before, strict=True):
        torch.testing.assert_close(store, old)
    sizes = re.findall(r"= empty_strided_cpu\(\(([^()]*)\)", code)
    return max((math.prod(map(int, filter(None, s.split(", ")))) for s in sizes), default=0)


@pytest.mark.parametrize(("slots", "paged"), [(1, False), (SLOTS, False), (SLOTS, True)])
def test_no_buffer_is_larger_than_what_is_written(slots, paged):
    assert largest_buffer(now, slots, paged) <= slots * 2 * 3 * SIZE


def test_what_copies_the_cache_would_be_noticed():
    assert largest_buffer(through_an_index, SLOTS, paged=False) >= SLOTS * 2 * ROWS * SIZE
