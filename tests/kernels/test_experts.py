"""Experts of a mixture for few rows: kernels against operators."""

import pytest
import torch

from eagle.kernels.experts import (
    Tiling,
    chosen,
    fits,
    made,
    mixes,
    mixture,
    mixture_by_operators,
    stages_of,
    tiling_of,
)
from eagle.testing import no_host_reads
from tests.interpreted import DEVICE, needs_triton
from tests.interpreted import quick as quick

HIDDEN, INNER = 40, 24
# The interpreter multiplies no bfloat16.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SIZES = [
    (1, 4, 1), (1, 8, 2), (1, 60, 4), (2, 4, 2), (5, 60, 4), (16, 8, 4), (17, 8, 1), (26, 8, 2),
    (33, 4, 4), (64, 4, 2), (64, 60, 1),
]  # fmt: skip


def case(rows, experts, top, dtype=torch.float32, hidden=HIDDEN, inner=INNER):
    generator = torch.Generator().manual_seed(rows)

    def normal(*size, scale=1.0):
        return (torch.randn(size, generator=generator) * scale).to(DEVICE, dtype)

    ids = torch.rand(rows, experts, generator=generator).topk(top).indices.to(DEVICE)
    weights = torch.rand(rows, top, generator=generator).to(DEVICE)
    return (
        normal(rows, hidden),
        ids,
        weights,
        normal(experts, 2 * inner, hidden, scale=hidden**-0.5),
        normal(experts, hidden, inner, scale=inner**-0.5),
    )


def exact(x, ids, weights, gate_up, down):
    """Pair by pair, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for row, (own, shares) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
        for expert, share in zip(own, shares, strict=True):
            if 0 <= expert < len(down):
                gate, up = (gate_up[expert].double() @ x[row].double()).chunk(2)
                hidden = torch.nn.functional.silu(gate) * up
                out[row] += share * (down[expert].double() @ hidden)
    return out


def distance(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@needs_triton
@pytest.mark.parametrize(
    ("rows", "experts", "top", "dtype"),
    [
        *((*sizes, torch.float32) for sizes in SIZES),
        *((*sizes, dtype) for sizes in SIZES[::3] for dtype in DTYPES[1:]),
    ],
)
def test_kernels_and_operators_are_the_weighted_sum_of_rows_experts(rows, experts, top, dtype):
    args = case(rows, experts, top, dtype)
    expected = exact(*args)
    assert distance(mixture(*args), expected) < CLOSE[dtype]
    assert distance(mixture_by_operators(*args), expected) < CLOSE[dtype]


@needs_triton
@pytest.mark.parametrize("tiling", [Tiling(16, 64, 3), Tiling(32, 32, 2), Tiling(64, 16, 1)])
def test_any_sharing_out_gives_the_same(tiling):
    args = case(7, 4, 2, hidden=72, inner=104)
    assert distance(made(*args, tiling), exact(*args)) < 1e-5


@needs_triton
def test_all_rows_may_go_to_one_expert_and_the_others_are_not_read():
    x, _, weights, gate_up, down = case(40, 8, 1)
    ids = torch.full((40, 1), 5, device=DEVICE)
    expected = exact(x, ids, weights, gate_up, down)
    for weight in (gate_up, down):
        weight[torch.arange(8, device=DEVICE) != 5] = torch.nan
    assert distance(mixture(x, ids, weights, gate_up, down), expected) < 1e-5
    assert chosen(ids, 8).tolist() == [5] + [-1] * 7


@needs_triton
@pytest.mark.parametrize("rows", [1, 3])
def test_ids_twice_and_of_no_expert_are_taken_for_what_they_are(rows):
    x, _, weights, gate_up, down = case(rows, 4, 3)
    ids = torch.tensor([[3, 3, 9], [-1, 2, 4], [0, 1, 1]], device=DEVICE)[:rows]
    expected = exact(x, ids, weights, gate_up, down)
    assert distance(mixture(x, ids, weights, gate_up, down), expected) < 1e-5
    assert distance(mixture_by_operators(x, ids, weights, gate_up, down), expected) < 1e-5


@needs_triton
def test_a_row_gives_what_it_gives_alone():
    x, ids, weights, gate_up, down = case(26, 8, 2)
    together = mixture(x, ids, weights, gate_up, down)
    broken = x.clone()
    broken[1:] = torch.nan
    among = mixture(broken, ids, weights, gate_up, down)
    assert torch.equal(among[0], together[0]), "whatever the rows beside it are"
    assert among[1:].isnan().all()
    alone = mixture(x[:1], ids[:1], weights[:1], gate_up, down)
    torch.testing.assert_close(alone[0], together[0], rtol=1e-5, atol=1e-6)


@needs_triton
@pytest.mark.parametrize("rows", [1, 5])
def test_nothing_is_read_on_the_host(rows):
    args = case(rows, 4, 2)
    expected = mixture(*args)
    with no_host_reads():
        found = mixture(*args)
    assert torch.equal(found, expected)


@needs_triton
def test_rows_may_begin_anywhere_and_be_strided():
    x, ids, weights, gate_up, down = case(3, 4, 2)
    flat = torch.full((1 + x.numel(),), torch.nan, device=DEVICE)
    flat[1:] = x.flatten()
    expected = mixture(x, ids, weights, gate_up, down)
    given = flat[1:].view_as(x), ids.T.contiguous().T, weights.T.contiguous().T, gate_up, down
    assert torch.equal(mixture(*given), expected)


@needs_triton
@pytest.mark.parametrize(
    ("rows", "experts", "top"), [(2, 3, 1), (9, 60, 4), (64, 200, 8), (64, 6, 6)]
)
def test_chosen_experts_are_found_once_each_in_order(rows, experts, top):
    ids = torch.rand(rows, experts).topk(top).indices.to(DEVICE)
    found, unique = chosen(ids, experts), ids.unique()
    assert len(found) == min(rows * top, experts)
    assert found[: len(unique)].tolist() == unique.tolist()
    assert set(found[len(unique) :].tolist()) <= {-1}


def test_one_rows_experts_keep_the_device_reading():
    assert tiling_of(4096, 14336, 2, 132) == Tiling(64, 64, 2), "Mixtral 8x7B"
    assert tiling_of(2048, 768, 8, 132) == Tiling(32, 64, 1), "Qwen3 30B A3B"
    assert tiling_of(5120, 8192, 1, 132) == Tiling(32, 64, 3)
    assert tiling_of(64, 64, 1, 132) == Tiling(16, 16, 1)
    for hidden, inner, top in ((4096, 14336, 2), (2048, 768, 8), (5120, 8192, 1), (2048, 1408, 4)):
        found = tiling_of(hidden, inner, top, 132)
        assert top * -(-inner // found.gated) >= 132
        assert top * -(-hidden // found.down) * found.splits >= 120


def test_two_programs_fit_on_a_processor():
    for block_m in (16, 32, 64):
        for weight_rows, row in ((128, 128), (64, 256), (128, 64)):
            stages = stages_of(weight_rows, block_m, row, 227 << 10)
            assert stages >= 3
            assert 2 * stages * (weight_rows + block_m) * row < 227 << 10
    assert stages_of(128, 64, 128, 99 << 10) == 2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": torch.float64},
        {"dtype": torch.int8},
        {"gate_up": (4, 16, 16)},
        {"down": (3, 16, 16)},
        {"down": (4, 12, 16), "gate_up": (4, 32, 12)},
        {"top": 5},
        {"transposed": True},
    ],
    ids=str,
)
def test_only_plain_gated_experts_are_served(change):
    dtype = change.get("dtype", torch.float16)
    gate_up = torch.zeros(change.get("gate_up", (4, 32, 16)), dtype=dtype)
    down = torch.zeros(change.get("down", (4, 16, 16)), dtype=dtype)
    if "transposed" in change:
        down = down.transpose(1, 2)
    assert fits(gate_up, down, change.get("top", 2)) == (not change)
    assert not mixes(gate_up, down, 2), "not on a CPU"


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 26])
def test_a_captured_graph_follows_the_routing(rows):
    x, ids, *rest = case(rows, 8, 2, torch.bfloat16, hidden=512, inner=768)
    mixture(x, ids, *rest)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mixture(x, ids, *rest)
    for seed in range(3):
        torch.manual_seed(seed)
        ids.copy_(torch.rand(rows, 8).topk(2).indices)
        graph.replay()
        assert distance(found, exact(x, ids, *rest)) < CLOSE[torch.bfloat16]
