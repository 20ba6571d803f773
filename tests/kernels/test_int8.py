"""Products with weights of eight bits: near enough, row by row, and for drafts alone."""

import copy

import pytest
import torch
from torch import nn

from eagle.decoding.decoder import Decoder
from eagle.kernels import int8
from eagle.kernels.few_rows import MAX_ROWS, SkinnyLinear, narrow
from eagle.kernels.int8 import Int8OnCpu, Int8OnGpu, int8_linear
from eagle.kernels.prepacked import Switch
from eagle.target.causal_lm import Target
from eagle.testing import tiny_target
from tests.interpreted import DEVICE, needs_triton, quiet

supported = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this CPU has no products of bytes"
)
everywhere = pytest.mark.parametrize(
    ("kind", "device"),
    [
        pytest.param(Int8OnCpu, "cpu", marks=supported, id="cpu"),
        pytest.param(Int8OnGpu, DEVICE, marks=needs_triton, id="gpu"),
    ],
)


def _layer(device="cpu", *, bias=False, size=(300, 96)):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(size[1], size[0], bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    return layer.to(device, torch.bfloat16).requires_grad_(False)


def _features(*shape, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)


@everywhere
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 3, 96), (64, 96)])
def test_products_are_near(bias, shape, kind, device):
    layer, x = _layer(device, bias=bias), _features(*shape, device=device)
    found = kind(layer)(x)
    exact = layer.double()(x.double())
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < 0.02, "eight bits are wrong by about one part in a hundred"


@everywhere
@pytest.mark.parametrize(("columns", "depth"), [(64, 128), (72, 208), (130, 16), (96, 400)])
def test_whole_numbers_are_multiplied_exactly(columns, depth, kind, device):
    generator = torch.Generator().manual_seed(2)
    dtype = torch.bfloat16 if kind is Int8OnCpu else torch.float32  # interpreted, it is cut off
    layer, x = _layer(device, size=(columns, depth)).to(dtype), torch.empty(5, depth).to(device)
    for rows in (layer.weight, x):  # each with a 127, so that its scale is 1
        rows.copy_(torch.randint(-3, 4, rows.shape, generator=generator))
        rows[:, 0] = 127
    exact = x.double() @ layer.weight.double().T
    assert torch.equal(kind(layer)(x.to(dtype)), exact.to(dtype))


@everywhere
def test_a_weight_is_quantized_piece_by_piece(monkeypatch, kind, device):
    x = _features(2, 96, device=device)
    whole = kind(_layer(device))(x)
    monkeypatch.setattr(int8, "_PIECE", dict.fromkeys(int8._PIECE, 1000))
    assert torch.equal(kind(_layer(device))(x), whole)


@everywhere
def test_a_row_does_not_depend_on_the_others(kind, device):
    product, x = kind(_layer(device)), _features(8, 96, device=device)
    x[3] *= 1000
    together = product(x)
    for row in range(8):
        assert torch.equal(product(x[row : row + 1])[0], together[row])


@quiet
@everywhere
def test_broken_rows_stay_broken_and_alone(kind, device):
    product, x = kind(_layer(device)), _features(4, 96, device=device)
    x[0, 5], x[1, 5], x[2] = torch.nan, torch.inf, 0
    out = product(x)
    assert not out[:2].isfinite().any()
    assert (out[2] == 0).all()
    assert out[3].isfinite().all()


@supported
def test_there_may_be_no_row():
    product = Int8OnCpu(_layer())
    assert product.serves(_features(1, 0, 96))
    assert product(_features(1, 0, 96)).shape == (1, 0, 300)


def test_many_rows_and_none_are_left_to_others_on_a_gpu():
    product = Int8OnGpu(_layer(DEVICE))
    served = [product.serves(_features(1, rows, 96)) for rows in (0, 1, MAX_ROWS, MAX_ROWS + 1)]
    assert served == [False, True, True, False]


@supported
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_defaults_of_pytorch_do_not_matter(dtype):
    layer, x = _layer(), torch.ones(1, 96).bfloat16()
    expected = Int8OnCpu(layer)(x)
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")
    try:
        found = Int8OnCpu(layer)(x)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(found, expected)


class Own(nn.Linear):
    """Does something of its own."""


@supported
def test_where_it_does_not_pay(monkeypatch):
    assert int8_linear(_layer()) is not None
    assert int8_linear(_layer().float()) is None
    assert int8_linear(_layer().to("meta")) is None
    assert int8_linear(nn.Embedding(4, 4)) is None
    assert int8_linear(Own(4, 4).bfloat16()) is None
    with monkeypatch.context() as patch:
        patch.setattr("torch.cpu._is_vnni_supported", lambda: False)
        assert int8_linear(_layer()) is None
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert int8_linear(_layer()) is None
    hooked = _layer()
    hooked.register_forward_hook(lambda *args: None)
    assert int8_linear(hooked) is None

    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert int8_linear(_layer()) is None


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.gpu
def test_where_it_pays_on_a_gpu(monkeypatch):
    size = (2**14, 2**9)
    layer = _layer(DEVICE, size=size)
    assert isinstance(int8_linear(layer), Int8OnGpu)
    assert isinstance(int8_linear(_layer(DEVICE, size=size).half()), Int8OnGpu)
    assert int8_linear(_layer(DEVICE, size=size).float()) is None
    assert int8_linear(_layer(DEVICE, size=(2**10, 2**9))) is None, "it is small"
    assert int8_linear(_layer(DEVICE, size=(2**14, 520))) is None, "its rows begin anywhere"
    parent = nn.Sequential(_layer(DEVICE, size=(2**11, 2**12)))
    narrow(parent, Switch())
    assert isinstance(parent[0], SkinnyLinear)
    assert isinstance(int8_linear(parent[0]), Int8OnGpu)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 2000))
    assert int8_linear(layer) is None


@needs_triton
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_drafts_read_what_eager_ones_do(backend, monkeypatch):
    monkeypatch.setattr("eagle.target.lm_head.int8_linear", Int8OnGpu)
    target = Target(tiny_target(dtype=torch.bfloat16).model.to(DEVICE), None, "tiny")
    draft, x = target.draft_logits(), _features(1, 5, target.info.hidden_size, device=DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(draft, backend=backend, fullgraph=True, dynamic=False)
    assert torch.equal(compiled(x), draft(x))
    assert not torch.equal(draft(x), target.logits(x))
    many = _features(1, MAX_ROWS + 1, target.info.hidden_size, device=DEVICE)
    assert torch.equal(draft(many), target.logits(many))


@supported
def test_drafts_read_eight_bits():
    target = tiny_target(dtype=torch.bfloat16)
    x = _features(1, 5, target.info.hidden_size)
    rough, exact = target.draft_logits()(x), target.logits(x)
    assert not torch.equal(rough, exact)
    assert (rough - exact).float().norm() < 0.05 * exact.float().norm()


@supported
def test_decoders_of_one_target_share_the_weight():
    target = tiny_target(dtype=torch.bfloat16)
    target.draft_logits()
    shared = target.lm_head.int8
    target.draft_logits()
    assert target.lm_head.int8 is shared


def test_drafts_in_float32_are_exact():
    target = tiny_target()
    assert target.draft_logits() == target.logits


@supported
def test_drafts_are_scaled_as_logits_are():
    target = tiny_target(dtype=torch.bfloat16)
    x, draft = _features(1, 2, target.info.hidden_size), target.draft_logits()
    plain = draft(x)
    target.config.final_logit_softcapping = 0.5
    assert torch.equal(draft(x), torch.tanh(plain / 0.5) * 0.5)


@supported
def test_what_becomes_of_the_target_later_is_seen():
    target = tiny_target(dtype=torch.bfloat16)
    x, draft = _features(1, 2, target.info.hidden_size), target.draft_logits()
    handle = target.model.lm_head.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(draft(x), target.logits(x))
    handle.remove()
    target.model.float()
    assert torch.equal(draft(x.float()), target.logits(x.float()))


@supported
def test_weights_that_were_changed_are_copied_anew():
    target = tiny_target(dtype=torch.bfloat16)
    x, before = _features(1, 2, target.info.hidden_size), target.draft_logits()
    kept = before(x)
    head = target.lm_head.layer
    head.load_state_dict({"weight": -head.weight})
    assert torch.equal(before(x), kept)
    assert torch.equal(target.draft_logits()(x), -kept)


@supported
@pytest.mark.parametrize(("lm_head", "rough"), [("auto", True), ("exact", False)])
def test_the_spec_says_how_the_lm_head_is_read(pair, spec, lm_head, rough):
    target = Target(copy.deepcopy(pair[0].model).bfloat16(), None, "tiny-pair")
    head = {"name": "eagle", "weights": str(pair[1]), "lm_head": lm_head}
    decoder = Decoder.from_spec(spec(head=head), target=target)
    decoder.generate([[1, 2, 3]], max_new_tokens=4)
    x = _features(1, 2, target.info.hidden_size)
    found = decoder._cycle.head.logits(x)
    assert torch.equal(found, target.draft_logits()(x) if rough else target.logits(x))
