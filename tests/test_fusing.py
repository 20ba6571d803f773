"""Projections multiplied at once give what they gave one by one."""

import pytest
import torch
from torch import nn

from eagle.fusing import SharedInput, fuse
from eagle.testing import tiny_target


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen2", "mixtral", "gemma2"])
def test_a_fused_model_gives_the_same_logits(architecture):
    target = tiny_target(architecture)
    ids = torch.tensor([[3, 9, 4, 7, 30]])
    with target.stock() as model, torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        assert fuse(model) >= 2
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected)
        assert fuse(model) == 0


def test_layers_given_different_inputs_are_still_right():
    parent = nn.Module()
    parent.gate_proj, parent.up_proj = (nn.Linear(4, 6, bias=False) for _ in range(2))
    parent.requires_grad_(False)
    gate, up = parent.gate_proj.weight.clone(), parent.up_proj.weight.clone()
    assert fuse(parent) == 1
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
    fuse(parent)
    storages = {p.untyped_storage().data_ptr() for p in parent.parameters()}
    assert len(storages) == 1
    assert [p.shape[0] for p in parent.parameters()] == [8, 2, 2]
