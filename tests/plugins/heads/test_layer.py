"""The head's network in half precision, as it decodes and as it is trained."""

import pytest
import torch
import torch.nn.functional as F

from eagle.testing import tiny_head, tiny_target


@pytest.fixture
def layer():
    """The decoder layer of a head, its norm's weights not all one."""
    layer = tiny_head(tiny_target()).module.layers[0]
    generator = torch.Generator().manual_seed(0)
    weight = layer.post_attention_layernorm.weight
    with torch.no_grad():
        weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    return layer


def normed(layer, x):
    """Return what the layer's MLP is given, where its attention adds nothing."""
    given = []
    hook = layer.mlp.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    layer.self_attn.forward = lambda x, *_: torch.zeros_like(x)
    layer(x, None, None, None)
    hook.remove()
    return given[0]


def test_the_norm_is_taken_in_the_precision_of_its_weights_in_training(layer):
    norm = layer.post_attention_layernorm
    x = torch.randn(2, 3, norm.weight.shape[0], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = normed(layer, x)
    expected = F.rms_norm(x.float(), norm.normalized_shape, norm.weight, norm.eps)
    assert torch.equal(found, expected)


def test_the_norm_is_left_as_it_is_in_decoding(layer):
    layer.bfloat16()
    norm = layer.post_attention_layernorm
    x = torch.randn(2, 3, norm.weight.shape[0], dtype=torch.bfloat16)
    assert torch.equal(normed(layer, x), norm(x))
