"""A pass whose layers go through another function, and what is compiled for one of them."""

import pytest
import torch

from eagle.cache import Step
from eagle.plugin import BuildContext, Role
from eagle.plugin.registry import default_registry
from eagle.runtime.compiling import _layer
from eagle.target.layerwise import layers_of
from eagle.testing import ARCHITECTURES, tiny_target


def a_pass(target):
    """Return a function that runs one pass of two slots over an empty cache."""
    strategy = default_registry().get(Role.ATTENTION, "sdpa").strategy
    attention = strategy.build(strategy.config(), BuildContext(target.info))
    tokens = torch.tensor([[3, 5, 7], [2, 9, 4]])
    wanted = tuple(range(target.info.layers + 1))

    def run():
        step = Step.chain(torch.zeros(2, dtype=torch.int64), 3, 16)
        with torch.inference_mode():
            last, hidden = target.forward(tokens, step, target.make_cache(2, 16), attention, wanted)
        return [last, *hidden]

    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_give_what_they_give_in_the_whole(architecture):
    target = tiny_target(architecture)
    run, called = a_pass(target), []

    def call(layer, forward, args, kwargs):
        called.append(layer)
        return forward(layer, *args, **kwargs)

    expected = run()
    with target.one_by_one(call):
        found = run()
    assert called == list(target.layers)
    assert len(called) == target.info.layers
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    run()
    assert len(called) == target.info.layers, "the layers are their own again"


def test_one_piece_of_code_serves_all_layers():
    target = tiny_target()
    run, graphs = a_pass(target), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    expected = run()
    with target.one_by_one(torch.compile(_layer, fullgraph=True, backend=backend)):
        found = run()
    assert target.info.layers > 1
    assert len(graphs) == 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_hooks_stay_around_a_layer():
    target, seen = tiny_target(), []
    run = a_pass(target)
    run()
    handles = [
        layer.register_forward_hook(lambda layer, args, out: seen.append(layer))
        for layer in target.layers
    ]
    with target.one_by_one(lambda layer, forward, args, kwargs: forward(layer, *args, **kwargs)):
        run()
    for handle in handles:
        handle.remove()
    assert seen == list(target.layers)


def test_other_models_are_not_disturbed_by_a_pass_under_way():
    """Two decoders of different targets may be driven by two threads."""
    target, other = tiny_target(), a_pass(tiny_target(seed=1))
    run, expected, found = a_pass(target), other(), []
    run()
    hooks = [dict(module._forward_hooks) for module in target.body.modules()]

    def call(layer, forward, args, kwargs):
        found.append(other())
        return forward(layer, *args, **kwargs)

    with target.one_by_one(call):
        run()
    assert found
    for one in found:
        assert all(map(torch.equal, one, expected))
    assert [dict(module._forward_hooks) for module in target.body.modules()] == hooks


def test_layers_that_are_one_or_otherwise_numbered_are_not_told():
    target = tiny_target()
    layers = target.body.layers
    target.body.layers = torch.nn.ModuleList([layers[0], layers[0]])
    assert not layers_of(target.body, 2)
    target.body.layers = torch.nn.ModuleList([layers[1], layers[0]])
    assert not layers_of(target.body, 2)
    target.body.layers = layers
    assert list(layers_of(target.body, 2)) == list(layers)


def test_layers_whose_forward_was_replaced_are_not_told():
    target = tiny_target()
    layer = target.layers[0]
    layer.forward = layer.forward
    assert not layers_of(target.body, target.info.layers)
    del layer.forward
    assert not layers_of(target.body, target.info.layers + 1)
    assert list(layers_of(target.body, target.info.layers)) == list(target.layers)
