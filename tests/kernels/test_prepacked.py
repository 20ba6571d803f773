"""Packed layers compute what dense ones do, share their weights, and can be turned off."""

import pytest
import torch
from torch import nn

from eagle.kernels.prepacked import PackedLinear, Switch, pack
from eagle.target.causal_lm import Target
from eagle.testing import tiny_target

supported = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products"
)


def _net(dtype=torch.bfloat16):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.Sequential(nn.Linear(96, 32, bias=False)))
    return net.to(dtype).requires_grad_(False)


@supported
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_packed_layers_compute_the_same(rows):
    dense, packed = _net(), _net()
    assert pack(packed, Switch())
    assert isinstance(packed[0], PackedLinear)
    assert isinstance(packed[1][0], PackedLinear)
    x = torch.randn(2, rows, 64).bfloat16()
    exact = dense.double()(x.double())
    error = (packed(x).double() - exact).norm() / exact.norm()
    assert error < 0.01


@supported
def test_weights_are_shared_and_names_stay():
    net = _net()
    before = {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}
    pack(net, Switch())
    assert {name: t.data_ptr() for name, t in net.state_dict().items()} == before


@supported
def test_off_is_the_ordinary_layer_to_the_bit():
    dense, packed, switch = _net(), _net(), Switch()
    pack(packed, switch)
    switch.on = False
    x = torch.randn(1, 5, 64).bfloat16()
    assert torch.equal(packed(x), dense(x))


@supported
def test_the_stock_model_is_not_packed():
    target = tiny_target(dtype=torch.bfloat16)
    assert isinstance(target.model.lm_head, PackedLinear)
    with target.stock():
        assert not target.layout.on
    assert target.layout.on


@supported
def test_a_hooked_layer_stays():
    net = _net()
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    x = torch.randn(1, 5, 64).bfloat16()
    pack(net, Switch())
    assert type(net[0]) is nn.Linear
    assert isinstance(net[1][0], PackedLinear)
    assert torch.equal(net[0](x), nn.functional.linear(x, net[0].weight, net[0].bias) + 1)


@supported
def test_hooks_on_a_model_stay_in_force():
    model = tiny_target().model.bfloat16()

    def ban(module, args, out):
        return out.index_fill(-1, torch.arange(32), -torch.inf)

    model.lm_head.register_forward_hook(ban)
    target = Target(model, None, "banned")
    assert (
        target.logits(torch.randn(1, 1, target.info.hidden_size).bfloat16()).argmax(-1) > 31
    ).all()


def test_float32_is_left_alone():
    net = _net(torch.float32)
    assert not pack(net, Switch())
    assert type(net[0]) is nn.Linear


@supported
def test_a_model_that_memory_cannot_hold_twice_is_left_alone(monkeypatch):
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert not pack(_net(), Switch())


@supported
def test_a_model_that_was_converted_is_an_ordinary_one():
    dense, packed = _net(), _net()
    pack(packed, Switch())
    assert packed.cpu()[0].packed is not None, "nothing has changed"
    x = torch.randn(1, 5, 64)
    assert torch.equal(packed.float()(x), dense.float()(x))
