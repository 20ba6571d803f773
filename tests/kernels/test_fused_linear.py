"""Projections multiplied at once give what they gave one by one."""

import weakref

import pytest
import torch
from torch import nn

from eagle.kernels import fused_linear as fusing
from eagle.kernels.fused_linear import SharedInput, arrange, fuse, products
from eagle.kernels.prepacked import Switch
from eagle.testing import tiny_target


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen2", "mixtral", "gemma2"])
def test_a_fused_model_gives_the_same_logits(architecture):
    target = tiny_target(architecture)
    ids = torch.tensor([[3, 9, 4, 7, 30]])
    with target.stock() as model, torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        assert fuse(model, Switch()) >= 2
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected)
        assert fuse(model, Switch()) == 0


def test_layers_given_different_inputs_are_still_right():
    parent = nn.Module()
    parent.gate_proj, parent.up_proj = (nn.Linear(4, 6, bias=False) for _ in range(2))
    parent.requires_grad_(False)
    gate, up = parent.gate_proj.weight.clone(), parent.up_proj.weight.clone()
    assert fuse(parent, Switch()) == 1
    assert isinstance(parent.up_proj, SharedInput)
    one, two = torch.rand(2, 3, 4)
    for x, y in ((one, two), (two, two), (one, one.clone())):
        torch.testing.assert_close(parent.gate_proj(x), x @ gate.T)
        torch.testing.assert_close(parent.up_proj(y), y @ up.T)
    torch.testing.assert_close(parent.up_proj(one), one @ up.T)


def test_no_second_copy_of_the_weights_is_kept():
    parent = nn.Module()
    parent.q_proj, parent.k_proj, parent.v_proj = (nn.Linear(4, n, bias=False) for n in (8, 2, 2))
    parent.requires_grad_(False)
    fuse(parent, Switch())
    storages = {p.untyped_storage().data_ptr() for p in parent.parameters()}
    assert len(storages) == 1
    assert [p.shape[0] for p in parent.parameters()] == [8, 2, 2]


def test_dense_weights_are_let_go_of_group_by_group(monkeypatch):
    def mlp():
        parent = nn.Module()
        parent.gate_proj, parent.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
        return parent.requires_grad_(False)

    module = nn.ModuleList(mlp() for _ in range(3))
    dense = [weakref.ref(w) for name, w in module.named_parameters() if "weight" in name]
    kept, stack = [], fusing._fuse

    def counted(*args):
        kept.append(sum(weight() is not None for weight in dense))
        stack(*args)

    monkeypatch.setattr(fusing, "_fuse", counted)
    assert fuse(module, Switch()) == 3
    assert kept == [6, 4, 2]


def test_with_the_switch_off_layers_are_ordinary(monkeypatch):
    parent, switch = nn.Module(), Switch()
    parent.gate_proj, parent.up_proj = (nn.Linear(4, 6) for _ in range(2))
    parent.requires_grad_(False)
    x = torch.rand(3, 4)
    expected = parent.up_proj(x)
    fuse(parent, switch)
    switch.on = False
    monkeypatch.setattr(parent.up_proj.product, "part", None)
    torch.testing.assert_close(parent.up_proj(x), expected)


def test_a_hooked_layer_stays():
    parent = nn.Module()
    parent.gate_proj, parent.up_proj = (nn.Linear(4, 6) for _ in range(2))
    parent.requires_grad_(False)
    parent.up_proj.register_forward_hook(lambda *args: None)
    assert fuse(parent, Switch()) == 0


def test_a_model_that_was_converted_is_an_ordinary_one():
    parent = nn.Module()
    parent.gate_proj, parent.up_proj = (nn.Linear(4, 6) for _ in range(2))
    parent.requires_grad_(False)
    x = torch.rand(3, 4)
    expected = parent.up_proj(x)
    fuse(parent, Switch())
    assert parent.cpu().up_proj.product, "nothing has changed"
    found = parent.double().up_proj(x.double())
    torch.testing.assert_close(found, expected.double())


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products"
)
@pytest.mark.parametrize("bias", [False, True])
def test_on_a_cpu_what_is_fused_is_packed_as_well(bias):
    torch.manual_seed(0)
    parent, switch = nn.Module(), Switch()
    parent.gate_proj, parent.up_proj = (nn.Linear(32, 48, bias) for _ in range(2))
    parent.down_proj = nn.Linear(48, 32, bias)
    parent.bfloat16().requires_grad_(False)
    x = torch.randn(3, 32).bfloat16()
    dense = [layer(x) for layer in (parent.gate_proj, parent.up_proj)]
    exact = [layer.weight.double() @ x.double().T for layer in (parent.gate_proj, parent.up_proj)]
    arrange(parent, switch)
    (product,) = products(parent)
    assert product.packed is not None
    assert parent.down_proj.packed is not None
    for layer, expected, whole in zip(
        (parent.gate_proj, parent.up_proj), exact, dense, strict=True
    ):
        found = layer(x).double() - (layer.bias.double() if bias else 0)
        assert (found - expected.T).norm() / expected.norm() < 0.01
        switch.on = False
        assert torch.equal(layer(x), whole), "off, it is the ordinary layer to the bit"
        switch.on = True


def test_in_float32_nothing_is_arranged_on_a_cpu():
    parent = nn.Module()
    parent.gate_proj, parent.up_proj = (nn.Linear(4, 6) for _ in range(2))
    parent.requires_grad_(False)
    arrange(parent, Switch())
    assert type(parent.gate_proj) is nn.Linear
