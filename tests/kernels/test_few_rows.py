"""Products of few rows: kernels against PyTorch, and layers that use them in compiled code only."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eagle.kernels import few_rows
from eagle.kernels.few_rows import (
    Plan,
    SkinnyLinear,
    Tiling,
    linear,
    narrow,
    plan_of,
    product_of_bytes,
    product_parts,
    tiling_of,
)
from eagle.kernels.int8 import Int8OnGpu, quantize
from eagle.kernels.prepacked import Switch
from tests.interpreted import DEVICE, needs_triton

DTYPES = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32, torch.float16]
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def random(rows, columns, depth, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, depth, generator=generator)
    weight = torch.randn(columns, depth, generator=generator) * depth**-0.5
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype)


def distance(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("rows", [2, 16, 26, 33, 64])
@pytest.mark.parametrize(("columns", "depth"), [(96, 384), (64, 128), (72, 200)])
def test_the_parts_of_a_product_add_up_to_it(rows, columns, depth, splits, dtype):
    x, weight = random(rows, columns, depth, dtype)
    parts = product_parts(x, weight, splits)
    assert parts.shape == (splits, rows, columns)
    assert parts.dtype == (dtype if splits == 1 else torch.float32)
    assert distance(parts.double().sum(0), x.double() @ weight.double().T) < CLOSE[dtype]


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(96, 384), (33, 2048), (64, 2176)])
def test_one_row_is_multiplied(columns, depth, dtype):
    x, weight = random(1, columns, depth, dtype)
    found = product_parts(x, weight, 1)
    assert distance(found[0], x.double() @ weight.double().T) < CLOSE[dtype]


@needs_triton
def test_parts_of_another_weight_and_strided_rows_are_told_apart():
    x, weight = random(3, 64, 256, DTYPES[0])
    wide = torch.full((64, 304), torch.nan, device=DEVICE, dtype=DTYPES[0])
    wide[:, :256] = weight
    rows = torch.full((3, 300), torch.nan, device=DEVICE, dtype=DTYPES[0])
    rows[:, :256] = x
    found = product_parts(rows[:, :256], wide[:, :256], 2).sum(0)
    assert distance(found, x.double() @ weight.double().T) < CLOSE[DTYPES[0]]
    one = product_parts(rows[:1, :256], wide[:, :256], 1)
    assert distance(one[0], x[:1].double() @ weight.double().T) < CLOSE[DTYPES[0]]


@needs_triton
def test_rows_may_begin_anywhere():
    x, weight = random(3, 64, 256, DTYPES[0])
    flat = torch.full((1 + x.numel(),), torch.nan, device=DEVICE, dtype=DTYPES[0])
    flat[1:] = x.flatten()
    found = product_parts(flat[1:].view(3, 256), weight, 1)[0]
    assert distance(found, x.double() @ weight.double().T) < CLOSE[DTYPES[0]]


@needs_triton
def test_rows_of_bytes_may_begin_anywhere():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randint(-9, 10, (1 + 3 * 256,), generator=generator).to(DEVICE, torch.int8)
    weight = torch.randint(-9, 10, (64, 256), generator=generator).to(DEVICE, torch.int8)
    x, scales = flat[1:].view(3, 256), torch.arange(1.0, 65, device=DEVICE)
    found = product_of_bytes(x, scales[:3], weight, scales, torch.float32)
    expected = (x.double() @ weight.double().T) * scales[:3, None] * scales
    assert torch.equal(found.double(), expected)
    wide = torch.stack((flat[1:].view(3, 256), flat[1:].view(3, 256)), dim=1)[:, 0]
    strided = torch.stack((scales[:3], scales[:3]), dim=1)[:, 0]
    assert torch.equal(product_of_bytes(wide, strided, weight, scales, torch.float32), found)


def test_a_cpu_leaves_its_layers_alone():
    parent = nn.Sequential(nn.Linear(4096, 4096, bias=False)).requires_grad_(False)
    narrow(parent, Switch())
    assert type(parent[0]) is nn.Linear
    assert plan_of(parent[0].weight) == Plan()


@pytest.mark.parametrize(("rows", "compiling"), [(65, True), (5, False), (1, False)])
def test_many_rows_and_uncompiled_ones_are_left_to_pytorch(rows, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    monkeypatch.setattr(few_rows, "product_parts", None)
    x, weight = torch.rand(rows, 8), torch.rand(6, 8)
    assert torch.equal(linear(x, weight, None, Plan(1, 2)), F.linear(x, weight))


@needs_triton
@pytest.mark.parametrize("bias", [False, True])
def test_code_for_any_number_of_rows_is_compiled_once(bias, monkeypatch):
    torch._dynamo.reset()
    x = torch.randint(-9, 9, (80, 256), device=DEVICE).to(DTYPES[0])
    weight = torch.randint(-9, 9, (64, 256), device=DEVICE).to(DTYPES[0])
    rough = object.__new__(Int8OnGpu)
    rough._bias, rough._columns, rough._dense = None, 64, weight
    eighth, scales = quantize(weight)
    rough._weight, rough._scales = eighth, scales[:, 0].contiguous()
    added = torch.ones(64, device=DEVICE, dtype=x.dtype) if bias else None
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    def work(x):
        assert rough.serves(x)
        return linear(x, weight, added, Plan(1, 2)), rough(x)

    one = torch.compile(work, fullgraph=True, dynamic=False, backend=backend)
    for slots in (80, 5, 64, 65):
        given = x[:slots].clone()
        torch._dynamo.maybe_mark_dynamic(given, 0)
        found, nearly = one(given)
        torch.testing.assert_close(found, F.linear(given, weight, added))
        torch.testing.assert_close(nearly, F.linear(given, weight), rtol=0.05, atol=60)
        assert torch.equal(nearly, F.linear(given, weight)) == (slots > 64)
    assert len(compiled) == 1


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [4096, 1152])
def test_a_compiled_layer_gives_what_it_gives_uncompiled(dtype, bias, depth):
    dense = nn.Linear(depth, 2048, bias=bias, device=DEVICE, dtype=dtype).requires_grad_(False)
    switch, parent = Switch(), nn.Sequential(dense)
    narrow(parent, switch)
    assert isinstance(parent[0], SkinnyLinear)
    torch._dynamo.reset()  # each case compiles the same function anew
    work = torch.compile(lambda x: parent(x) * 2, fullgraph=True, dynamic=False)
    for shape in ((1, 1), (1, 26), (2, 30), (1, 100)):
        x = torch.randn(*shape, depth, device=DEVICE, dtype=dtype)
        offset = dense.bias.double() if bias else 0
        expected = (x.double() @ dense.weight.double().T + offset) * 2
        assert distance(work(x), expected) < CLOSE[dtype]
    switch.on = False
    torch.testing.assert_close(parent(x), dense(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("columns", "depth", "shared", "plan"),
    [
        (22016, 4096, True, Plan(1, 1)),
        (4096, 4096, False, Plan(1, 1)),
        (4096, 11008, False, Plan(2, 1)),
        (4096, 14336, False, Plan(1, 1)),
        (2048, 8192, False, Plan(1, 2)),
        (16384, 11008, False, Plan(1, 1)),
        (576, 1536, False, Plan(1, 6)),
        (576, 576, False, Plan(1, 3)),
        (3072, 576, True, Plan(1, 1)),
        (49152, 576, False, Plan()),
        (5120, 960, True, Plan()),
    ],
)
def test_products_are_made_as_was_measured(columns, depth, shared, plan):
    assert few_rows._plan(columns, depth, shared, 132) == plan


def test_parts_go_by_the_number_of_rows():
    plan = Plan(1, 2)
    assert [plan.parts(rows) for rows in (0, 1, 2, 64, 65)] == [0, 1, 2, 2, 0]
    assert Plan(3, 2).parts(1) == 3
    assert Plan().parts(1) == Plan().parts(5) == 0


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "splits", "tiling"),
    [
        (26, 4096, 4096, 1, Tiling(32, 64, 128, 8)),  # alone on a multiprocessor
        (26, 12288, 4096, 1, Tiling(32, 64, 128, 4)),  # two on each
        (26, 22016, 4096, 1, Tiling(32, 128, 64, 5)),  # two on each only where blocks are higher
        (26, 49152, 4096, 1, Tiling(32, 64, 128, 4)),  # more than two on each in any case
        (64, 12288, 4096, 1, Tiling(64, 64, 128, 3)),
        (5, 12288, 4096, 1, Tiling(16, 64, 128, 5)),
        (26, 576, 576, 3, Tiling(32, 64, 128, 3)),  # no more stages than there are blocks
    ],
)
def test_memory_is_full_of_blocks_on_their_way(rows, columns, depth, splits, tiling):
    assert tiling_of(rows, columns, depth, splits, 2, 132, 227 << 10) == tiling


def test_fewer_blocks_are_in_flight_where_there_is_less_room():
    def stages(rows, columns):
        return tiling_of(rows, columns, 4096, 1, 2, 132, 99 << 10).stages

    assert (stages(26, 4096), stages(64, 4096), stages(64, 12288)) == (4, 3, 3)


def test_int8_is_taken_in_blocks_of_one_height():
    assert tiling_of(26, 22016, 4096, 1, 1, 132, 227 << 10) == Tiling(32, 64, 128, 8)


@needs_triton
def test_one_row_in_parts_is_a_product_of_few_rows():
    x, weight = random(1, 64, 384, DTYPES[0])
    found = product_parts(x, weight, 2).double().sum(0)
    assert distance(found, x.double() @ weight.double().T) < CLOSE[DTYPES[0]]


def test_dtypes_that_differ_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(few_rows, "product_parts", None)
    with pytest.raises(RuntimeError, match="dtype"):
        linear(torch.rand(1, 8), torch.rand(6, 8).half(), None, Plan(1, 1))


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.gpu
def test_weights_that_no_kernel_reads_are_left_to_cublas():
    def plan(columns, depth, dtype=torch.bfloat16):
        return plan_of(torch.empty(columns, depth, device=DEVICE, dtype=dtype))

    assert plan(22016, 4096) == Plan(1, 1)
    assert plan(22016, 4096, torch.float32) == Plan()
    assert plan(32768, 4097) == Plan(), "its rows begin anywhere"
    padded = torch.empty(4096, 4096, device=DEVICE, dtype=torch.bfloat16)[:, :4090]
    assert plan_of(padded) == Plan(), "those of its input would"
