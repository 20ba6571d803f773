"""Weights of four bits: kernels against the numbers that they stand for, and layers of them."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eagle.kernels import int4
from eagle.kernels.few_rows import MAX_ROWS, Tiling, block_rows
from eagle.kernels.int4 import Int4Linear, Int4Part, cut_of, stack_int4, width_of
from tests.interpreted import DEVICE, needs_triton
from tests.interpreted import quick as quick

# The interpreter multiplies no bfloat16, and cuts numbers off where they have more bits.
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def parts(columns, depth, group, seed=0):
    """Return q, s and z such that each number of the weight is a bfloat16 one."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 16, (columns, depth), generator=generator, dtype=torch.uint8)
    shape = depth // group, columns
    scales = 2.0 ** torch.randint(-6, -2, shape, generator=generator)
    zeros = scales * torch.randint(-8, 8, shape, generator=generator)
    return whole.to(DEVICE), scales.to(DEVICE, torch.bfloat16), zeros.to(DEVICE, torch.bfloat16)


def meant(whole, scales, zeros):
    group = whole.shape[1] // len(scales)
    scales, zeros = (part.T.float().repeat_interleave(group, 1) for part in (scales, zeros))
    return ((whole.float() - 8) * scales + zeros).bfloat16()


def layer(columns, depth, group=128, *, bias=False, seed=0):
    made = parts(columns, depth, group, seed)
    added = torch.linspace(-1, 1, columns, device=DEVICE, dtype=DTYPE) if bias else None
    return Int4Linear(*made, added), meant(*made).to(DTYPE), added


def features(rows, depth):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, depth, generator=generator).to(DEVICE, DTYPE)


@pytest.mark.parametrize(("depth", "group"), [(512, 128), (384, 128), (256, 64), (128, 32)])
def test_a_weight_stands_for_the_numbers_it_was_made_of(depth, group):
    made = parts(64, depth, group)
    held = Int4Linear(*made, None)
    assert torch.equal(held.dense(), meant(*made))
    assert held.qweight.nbytes == 64 * depth // 2
    assert held.pairs.nbytes == 64 * depth // group * 4


@needs_triton
@pytest.mark.parametrize("block_n", [64, 128])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rows", [1, 17, MAX_ROWS])
@pytest.mark.parametrize(("depth", "group"), [(1024, 128), (384, 128), (512, 32)])
def test_the_parts_of_a_product_add_up_to_it(rows, depth, group, splits, block_n):
    from eagle.kernels.int4_triton import multiply_int4

    held, weight, _ = layer(128, depth, group)
    x = features(rows, depth)
    out = torch.full((splits, rows, 128), torch.nan, device=DEVICE)
    tiling = Tiling(block_rows(rows), block_n, held.width, 3)
    multiply_int4(x, held.qweight, held.pairs, out, tiling)
    expected = x.double() @ weight.double().T
    assert (out.double().sum(0) - expected).norm() < 1e-5 * expected.norm()


@needs_triton
@pytest.mark.parametrize(("depth", "group"), [(512, 128), (384, 128), (256, 32)])
def test_a_weight_is_written_out(depth, group):
    from eagle.kernels.int4_triton import write_dense

    held, weight, _ = layer(64, depth, group)
    out = torch.empty_like(weight)
    write_dense(held.qweight, held.pairs, out, held.width)
    assert torch.equal(out, weight)


@pytest.mark.parametrize("rows", [1, 26, MAX_ROWS + 1, 0])
def test_a_layer_is_a_linear_one(rows):
    held, weight, bias = layer(128, 512, bias=True)
    x = features(rows, 512)[None]
    found, expected = held(x), F.linear(x, weight, bias)
    assert found.shape == (1, rows, 128)
    assert found.dtype == DTYPE
    assert (found - expected).norm() <= 5e-3 * expected.norm()


class Attention(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = layers

    def forward(self, x):
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


@pytest.mark.parametrize("bias", [False, True])
def test_layers_that_read_one_input_are_stacked(bias):
    layers = [layer(size, 256, bias=bias, seed=size)[0] for size in (128, 64, 64)]
    parent, x = Attention(*layers), features(5, 256)
    expected, held = parent(x), sum(one.qweight.nbytes + one.pairs.nbytes for one in layers)
    stack_int4(parent)
    assert all(isinstance(one, Int4Part) for one in parent.children())
    assert (parent(x) - expected).norm() <= 5e-3 * expected.norm()
    weights = [m for m in parent.modules() if isinstance(m, Int4Linear)]
    assert sum(one.qweight.nbytes + one.pairs.nbytes for one in weights) == held


def test_what_is_stacked_is_let_go_of_group_by_group(monkeypatch):
    layers = [layer(64, 256, seed=seed)[0] for seed in range(6)]
    parents = nn.Sequential(Attention(*layers[:3]), Attention(*layers[3:]))
    kept = weakref.ref(layers[1])
    del layers
    gone, stack = [], int4._stack
    monkeypatch.setattr(int4, "_stack", lambda *group: (gone.append(kept() is None), stack(*group)))
    stack_int4(parents)
    assert gone == [False, True]


def test_layers_of_other_kinds_are_not_stacked():
    odd = layer(64, 256, group=64)[0], layer(64, 256)[0], layer(64, 256)[0]
    parent = Attention(*odd)
    stack_int4(parent)
    assert tuple(parent.children()) == odd


def test_what_fits_no_plane_is_not_taken():
    assert width_of(4096, 128) == 64
    assert width_of(384, 128) == 32
    assert width_of(4096, 32) == 32
    assert width_of(192, 64) == 0
    assert width_of(768, 192) == 0, "its groups begin within planes of a step"
    assert width_of(1024, 512) == 64
    assert not int4.int4_serves(128, 512, 128, torch.device("cpu"))


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(("columns", "depth"), [(4096, 4096), (22016, 4096), (4096, 11008)])
def test_a_weight_is_read_by_as_many_programs_as_have_room(columns, depth, few):
    block_n, splits = cut_of(columns, depth, 64, 132, few=few)
    assert 330 <= columns // block_n * splits <= 520


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.gpu
def test_compiled_products_are_those_of_eager_ones():
    held, weight, _ = layer(4096, 4096)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: held(x).relu(), fullgraph=True, dynamic=False)
    for rows in (1, 26, MAX_ROWS, 100):
        x = features(rows, 4096)
        expected = F.linear(x, weight).relu()
        assert (compiled(x) - expected).norm() < 1e-2 * expected.norm()
        assert (held(x).relu() - expected).norm() < 1e-2 * expected.norm()
