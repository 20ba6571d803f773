"""Products with weights of eight bits: near enough, row by row, and for drafts alone."""

import copy

import pytest
import torch
from torch import nn

from eagle.decoder import Decoder
from eagle.quantized import MAX_ROWS, Int8Linear, int8_linear
from eagle.target import Target
from eagle.testing import tiny_target

supported = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this CPU has no products of bytes"
)


def _layer(*, bias=False, size=(300, 96)):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(size[1], size[0], bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    return layer.bfloat16().requires_grad_(False)


@supported
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 3, 96), (16, 96)])
def test_products_are_near(bias, shape):
    layer = _layer(bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = layer.double()(x.double())
    found = Int8Linear(_layer(bias=bias))(x)
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < 0.02, "eight bits are wrong by about one part in a hundred"


@supported
def test_a_weight_is_quantized_piece_by_piece(monkeypatch):
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = Int8Linear(_layer())(x)
    monkeypatch.setattr("eagle.quantized._PIECE", 1000)
    assert torch.equal(Int8Linear(_layer())(x), whole)


@supported
def test_a_row_does_not_depend_on_the_others():
    product = Int8Linear(_layer())
    x = torch.randn(8, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[3] *= 1000
    together = product(x)
    for row in range(8):
        assert torch.equal(product(x[row : row + 1])[0], together[row])


@supported
def test_broken_rows_stay_broken_and_alone():
    product = Int8Linear(_layer())
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[0, 5], x[1, 5], x[2] = torch.nan, torch.inf, 0
    out = product(x)
    assert not out[:2].isfinite().any()
    assert (out[2] == 0).all()
    assert out[3].isfinite().all()


@supported
def test_where_it_does_not_pay(monkeypatch):
    assert int8_linear(_layer()) is not None
    assert int8_linear(_layer().float()) is None
    assert int8_linear(nn.Embedding(4, 4)) is None
    with monkeypatch.context() as patch:
        patch.setattr("torch.cpu._is_vnni_supported", lambda: False)
        assert int8_linear(_layer()) is None

    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert int8_linear(_layer()) is None


@supported
def test_drafts_of_few_rows_read_eight_bits():
    target = tiny_target(dtype=torch.bfloat16)
    x = torch.randn(1, MAX_ROWS, target.info.hidden_size).bfloat16()
    rough, exact = target.draft_logits(x), target.logits(x)
    assert not torch.equal(rough, exact)
    assert (rough - exact).float().norm() < 0.05 * exact.float().norm()
    many = torch.cat((x, x[:, :1]), 1)
    assert torch.equal(target.draft_logits(many), target.logits(many))


@supported
def test_drafts_are_scaled_as_logits_are():
    target = tiny_target(dtype=torch.bfloat16)
    x = torch.randn(1, 2, target.info.hidden_size).bfloat16()
    plain = target.draft_logits(x)
    target.config.final_logit_softcapping = 0.5
    assert torch.equal(target.draft_logits(x), torch.tanh(plain / 0.5) * 0.5)


@supported
def test_a_target_that_was_converted_is_read_as_it_is():
    target = tiny_target(dtype=torch.bfloat16)
    x = torch.randn(1, 2, target.info.hidden_size)
    target.draft_logits(x.bfloat16())
    target.model.float()
    assert torch.equal(target.draft_logits(x), target.logits(x))


@supported
@pytest.mark.parametrize(("lm_head", "rough"), [("auto", True), ("exact", False)])
def test_the_spec_says_how_the_lm_head_is_read(pair, spec, lm_head, rough):
    target = Target(copy.deepcopy(pair[0].model).bfloat16(), None, "tiny-pair")
    head = {"name": "eagle", "weights": str(pair[1]), "lm_head": lm_head}
    decoder = Decoder.from_spec(spec(head=head), target=target)
    decoder.generate([[1, 2, 3]], max_new_tokens=4)
    x = torch.randn(1, 2, target.info.hidden_size).bfloat16()
    found = decoder._cycle.head.logits(x)
    assert torch.equal(found, target.draft_logits(x) if rough else target.logits(x))
