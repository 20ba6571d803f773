"""The Triton kernel against its naive twin, interpreted on a CPU and compiled on a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import Decoder
from eagle.cache.store import Step
from eagle.errors import TargetError
from eagle.plugin.roles import BuildContext
from eagle.plugin.tree import ancestor_mask
from eagle.testing import check_attention_backend
from eagle_plugins.attention.naive import naive_attention
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig
from eagle_plugins.attention.tiling import Tiling
from eagle_plugins.attention.triton import MAX_NODES, Triton, TritonConfig

pytest.importorskip("triton", reason="Triton is not installed")
from eagle_plugins.attention import triton_kernel
from tests.interpreted import quick as quick

CUDA_HERE = torch.cuda.is_available()
CPU = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(CUDA_HERE, reason="kernels are compiled, for the GPU"),
)
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not CUDA_HERE, reason="no CUDA device"),
    ],
)
DEVICES = [CPU, CUDA]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SMALL = Tiling(block_m=16, block_n=16, splits=2, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class Shape:
    lengths: list[int]
    nodes: int
    earlier: int
    kv_heads: int
    groups: int
    head_dim: int
    dtype: torch.dtype
    tiling: Tiling
    seed: int


@st.composite
def shapes(draw):
    pick = st.sampled_from
    # The interpreter does not multiply bfloat16.
    dtype = draw(pick([d for d in TOLERANCE if CUDA_HERE or d != torch.bfloat16]))
    nodes, groups = draw(st.integers(1, 12) | pick([16, 26, 40])), draw(pick([1, 2, 3, 8]))
    block_m, block_n = draw(pick([16, 32])), draw(pick([16, 32]))
    if CUDA_HERE and dtype == torch.float32:
        block_m = block_n = 16  # larger ones take the compiler minutes
    else:  # so that there are few programs to interpret
        block_m = max(block_m, 1 << (nodes * groups // 4).bit_length())
    tiling = Tiling(block_m, block_n, draw(pick([1, 2, 3, 5, 9])), num_warps=4, num_stages=2)
    return Shape(
        lengths=draw(st.lists(pick([0, 1, 15, 16, 17, 31, 40, 96]), min_size=1, max_size=3)),
        nodes=nodes,
        earlier=draw(pick([0, 0, 1, 5, 16])),
        kv_heads=draw(pick([1, 2])),
        groups=groups,
        head_dim=draw(pick([64, 64, 96, 128, 256, 80])),
        dtype=dtype,
        tiling=tiling,
        seed=draw(st.integers(0, 2**32)),
    )


def make(shape, device):
    """Random queries, and keys and values that are NaN wherever nothing was written."""
    generator = torch.Generator().manual_seed(shape.seed)

    def randn(*size):
        return torch.randn(*size, generator=generator).to(device, shape.dtype)

    slots, width = len(shape.lengths), shape.nodes + shape.earlier
    lengths = torch.tensor(shape.lengths)
    above = torch.arange(width).clamp(min=1)
    parents = (torch.rand(slots, width, generator=generator) * above).long()
    parents[:, 0] = -1
    tail = ancestor_mask(parents, width)[:, shape.earlier :].contiguous()
    span = int(lengths.max()) + width + 3
    stores = torch.full((2, slots, shape.kv_heads, span + 5, shape.head_dim), torch.nan)
    stores = stores.to(device, shape.dtype)
    for slot, length in enumerate(shape.lengths):
        rows = length + width
        stores[:, slot, :, :rows] = randn(2, shape.kv_heads, rows, shape.head_dim)
    query = randn(slots, shape.nodes, shape.kv_heads * shape.groups, shape.head_dim)
    keys, values = stores[:, :, :, :span]
    return query.transpose(1, 2), keys, values, lengths.to(device), tail.to(device)


def tickets_of(inputs, tiling):
    """Enough of them, and one more that no program should touch."""
    query, keys = inputs[:2]
    tiles = -(-query.shape[2] * query.shape[1] // keys.shape[1] // tiling.block_m)
    return query.new_zeros(keys.shape[0] * keys.shape[1] * tiles + 1, dtype=torch.int32)


def launch(*inputs):
    """Launch the kernel, and see that it leaves its tickets as it found them."""
    *tensors, scale, tiling = inputs
    tickets = tickets_of(tensors, tiling)
    found = triton_kernel.launch(*tensors, tickets, scale, tiling)
    assert not tickets.any()
    return found


@contextmanager
def poison():
    """Let fresh memory hold NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def agree(inputs, tiling, tolerance):
    scale = inputs[0].shape[3] ** -0.5
    with poison():
        found = launch(*inputs, scale, tiling)
    expected = naive_attention(*inputs, scale)
    assert found.shape == expected.shape
    assert found.dtype == inputs[0].dtype
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= tolerance


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=15)
@given(shape=shapes())
def test_the_kernel_agrees_with_its_naive_twin(device, shape):
    agree(make(shape, device), shape.tiling, TOLERANCE[shape.dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("groups", "block_m"), [(1, 128), (3, 64)])
def test_a_tree_of_the_largest_size(device, groups, block_m):
    tiling = Tiling(block_m, 64, 2, 4, 2)
    shape = Shape([70, 3], MAX_NODES, 0, 1, groups, 64, torch.float16, tiling, seed=1)
    agree(make(shape, device), tiling, TOLERANCE[torch.float16])


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA_HERE, reason="no CUDA device")
@settings(max_examples=150)
@given(shape=shapes(), many=st.sampled_from([61, 100, 128]), long=st.integers(100, 3000))
def test_large_passes_agree_on_cuda(shape, many, long):
    large = replace(shape, nodes=many, lengths=[*shape.lengths, long])
    query, keys, values, lengths, tail = make(large, "cuda")
    backend = backend_of(Triton)
    step = Step(lengths, lengths, lengths, tail, keys.shape[2])
    plan = backend.plan(step, query.shape[1], keys.shape[1], shape.dtype)
    with poison():
        found = backend.attend(query, keys, values, plan, 0.1)
    dense = Sdpa(SdpaConfig(), BuildContext())
    double = [x.double().nan_to_num() for x in (query, keys, values)]
    mask = dense.plan(step, query.shape[1], keys.shape[1], torch.float64)
    expected = dense.attend(*double, mask, 0.1)
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("splits", [1, 3, 9])
def test_an_entry_that_sees_nothing_gives_zeros(device, splits):
    shape = Shape([0, 20], 3, 0, 1, 2, 64, torch.float32, SMALL, seed=0)
    query, keys, values, lengths, tail = make(shape, device)
    tail = torch.zeros_like(tail)
    with poison():
        found = launch(query, keys, values, lengths, tail, 0.1, replace(SMALL, splits=splits))
    assert (found[0] == 0).all()
    assert found[1].isfinite().all()
    assert (found[1] != 0).any()


@pytest.mark.parametrize("device", DEVICES)
def test_without_enough_tickets_a_second_kernel_joins(device):
    shape = Shape([20, 90], 3, 0, 2, 2, 64, torch.float32, SMALL, seed=0)
    inputs = make(shape, device)
    tickets = torch.ones(3, dtype=torch.int32, device=device)
    with poison():
        found = triton_kernel.launch(*inputs, tickets, 0.1, SMALL)
    expected = naive_attention(*inputs, 0.1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert (tickets == 1).all(), "nobody drew one"


@pytest.mark.parametrize("device", DEVICES)
def test_queries_may_lie_in_any_order(device):
    shape = Shape([9], 5, 2, 2, 2, 64, torch.float32, SMALL, seed=3)
    query, *rest = make(shape, device)
    scattered = torch.empty(1, 64, 5, 4, device=device).permute(0, 3, 2, 1)
    scattered.copy_(query)
    backend = backend_of(Triton)
    step = Step(rest[2], rest[2], rest[2], rest[3], rest[0].shape[2])
    plan = backend.plan(step, 4, 2, torch.float32)
    found = backend.attend(scattered, *rest[:2], plan, 0.125)
    expected = naive_attention(query, *rest, 0.125)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA_HERE, reason="no CUDA device")
def test_a_captured_launch_serves_other_lengths():
    shape = Shape([300, 2], 26, 0, 2, 4, 64, torch.bfloat16, SMALL, seed=5)
    query, keys, values, lengths, tail = make(shape, "cuda")
    keys, values = keys.nan_to_num(), values.nan_to_num()
    launch(query, keys, values, lengths, tail, 0.1, SMALL)  # compiled before it is captured
    tickets = tickets_of((query, keys), SMALL)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = triton_kernel.launch(query, keys, values, lengths, tail, tickets, 0.1, SMALL)
    for other in ([0, 300], [17, 64], [299, 1]):
        lengths.copy_(torch.tensor(other))
        query.normal_()
        graph.replay()
        expected = naive_attention(query, keys, values, lengths, tail, 0.1)
        assert (found.double() - expected).norm() / expected.norm() < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA_HERE, reason="no CUDA device")
def test_a_cache_may_have_more_elements_than_int32_counts():
    shape = Shape([40, 33], 7, 0, 1, 2, 64, torch.float16, SMALL, seed=6)
    query, keys, values, lengths, tail = make(shape, "cuda")

    def spread(x):
        slot = x[0].contiguous()
        store = torch.empty(2**31 + slot.numel(), dtype=x.dtype, device="cuda")
        return store.as_strided(x.shape, (2**31, *slot.stride())).copy_(x)

    inputs = query, spread(keys), spread(values), lengths, tail
    agree(inputs, SMALL, TOLERANCE[torch.float16])


# --- the backend ------------------------------------------------------------------------------


def backend_of(kind, device="cuda" if CUDA_HERE else "cpu"):
    config = {Triton: TritonConfig, Sdpa: SdpaConfig}[kind]
    return kind(config(), BuildContext(device=torch.device(device)))


@pytest.mark.parametrize("device", DEVICES)
def test_the_backend_keeps_the_contract(device):
    cases = 40 if device == "cuda" else 6
    check_attention_backend(backend_of(Triton), device=device, cases=cases)
    if device == "cuda":
        check_attention_backend(
            backend_of(Triton), device=device, dtype=torch.bfloat16, tolerance=0.02, cases=cases
        )


@pytest.mark.parametrize("device", DEVICES)
def test_a_long_pass_goes_through_sdpa(device, monkeypatch):
    monkeypatch.setattr("eagle_plugins.attention.triton.tree_attention", None)
    lengths = torch.tensor([4], device=device)
    step = Step.chain(lengths, MAX_NODES + 1, MAX_NODES + 9, torch.zeros_like(lengths))
    query, keys, values = torch.randn(3, 1, 2, MAX_NODES + 9, 64, device=device)
    query = query[:, :, : MAX_NODES + 1]
    found, expected = (
        backend.attend(query, keys, values, backend.plan(step, 2, 2, torch.float32), 0.125)
        for backend in (backend_of(Triton), backend_of(Sdpa))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_plan_and_attention_compile_without_a_graph_break(device):
    backend = backend_of(Triton)

    def attend(query, keys, values, lengths, depths, ancestors):
        step = Step.tree(lengths, depths, ancestors, keys.shape[2])
        plan = backend.plan(step, query.shape[1], keys.shape[1], query.dtype)
        return backend.attend(query, keys, values, plan, 0.1).flatten(2) + 1

    shape = Shape([9, 30], 6, 0, 2, 2, 64, torch.float32, SMALL, seed=7)
    query, keys, values, lengths, tail = make(shape, device)
    inputs = (query, keys, values, lengths, tail.sum(2) - 1, tail)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False)
    expected = naive_attention(query, keys, values, lengths, tail, 0.1).flatten(2) + 1
    torch.testing.assert_close(compiled(*inputs).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "reason"),
    [
        ("cpu", torch.float64, 64, "float64"),
        ("cpu", torch.float32, 320, "up to 256, not 320"),
        ("cpu", torch.bfloat16, 64, "integers"),
        ("meta", torch.float32, 64, "do not run on 'meta'"),
    ],
)
def test_it_says_what_it_cannot_serve(device, dtype, head_dim, reason, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reason in backend_of(Triton).unsupported(torch.device(device), dtype, head_dim)


def test_a_cpu_decoder_with_triton_is_refused_with_the_way_out(pair, spec, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(TargetError, match="'cpu'; attention `auto` or `sdpa` does"):
        Decoder.from_spec(spec(attention="triton"), target=pair[0])


@pytest.mark.skipif(CUDA_HERE, reason="kernels are compiled, for the GPU")
def test_a_decoder_says_the_same_as_with_sdpa(pair, spec):
    texts = []
    for name in ("triton", "sdpa"):
        decoder = Decoder.from_spec(spec(attention=name), target=pair[0])
        results = decoder.generate([[5, 8, 11], [9, 10, 11, 12, 14]], max_new_tokens=9)
        texts.append([result.tokens for result in results])
    assert texts[0] == texts[1]


# --- windows, caps and sinks ------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=12)
@given(
    shape=shapes(),
    window=st.sampled_from([None, 1, 3, 16, 17, 33, 200]),
    softcap=st.sampled_from([None, 0.7, 30.0]),
    sinks=st.booleans(),
)
def test_windows_caps_and_sinks_agree_with_the_naive_twin(device, shape, window, softcap, sinks):
    shape = replace(shape, earlier=0)
    query, _keys, _values, lengths, tail = inputs = make(shape, device)
    scale = shape.head_dim**-0.5
    generator = torch.Generator().manual_seed(shape.seed)
    options = {
        "positions": (lengths[:, None] + tail.sum(2) - 1).contiguous(),
        "window": window,
        "softcap": softcap,
        "sinks": None,
    }
    if sinks:
        made = torch.randn(query.shape[1], generator=generator)
        options["sinks"] = made.to(device, shape.dtype)
    tickets = tickets_of(inputs, shape.tiling)
    with poison():
        found = triton_kernel.launch(*inputs, tickets, scale, shape.tiling, **options)
    assert not tickets.any()
    expected = naive_attention(*inputs, scale, **options)
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("splits", [1, 3, 9])
def test_rows_that_a_window_hides_from_everybody_are_not_read(device, splits):
    shape = Shape([200], 3, 0, 1, 2, 64, torch.float32, SMALL, seed=2)
    query, keys, values, lengths, tail = make(shape, device)
    keys[:, :, :160] = values[:, :, :160] = torch.nan  # a block begins there, and one before 181
    options = {"positions": lengths[:, None] + tail.sum(2) - 1, "window": 20}
    inputs = (query, keys, values, lengths, tail)
    tiling = replace(SMALL, splits=splits)
    found = triton_kernel.launch(*inputs, tickets_of(inputs, tiling), 0.1, tiling, **options)
    expected = naive_attention(query, keys, values, lengths, tail, 0.1, **options)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_window_needs_the_positions_of_all_rows():
    rows, seen = torch.arange(2)[None], torch.ones(1, 2, 5, dtype=torch.bool)
    step = Step(rows, rows, torch.tensor([0]), seen, 8)
    for backend in (backend_of(Triton), backend_of(Sdpa)):
        with pytest.raises(ValueError, match="positions of all rows"):
            backend.plan(step, 2, 2, torch.float32, window=4)
