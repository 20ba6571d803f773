"""A head cut over two processes against a whole one: FSDP changes memory, and nothing else."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eagle.spec.schema import TargetSpec
from eagle.testing import tiny_head, tiny_target
from eagle.train.run.processes import Processes
from eagle.train.run.run import train
from eagle.train.run.sharding import Sharded, weights_of
from eagle.train.spec.recipe import load_train_spec
from tests.train.together import BASE, assert_same_run, checkpoint, run_together, run_two, weights

# Tight enough that the gradients of every step are cut by both.
CLIPPED = ["optimizer.clip_value=1.0e-3", "optimizer.clip_norm=0.02"]
FSDP = ["batch=2", "sharding=fsdp"]


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(output, *overrides):
        changes = [f"output={tmp_path / output}", *CLIPPED, *overrides]
        return load_train_spec(tmp_path / "run.yaml", changes)

    return make


def test_a_sharded_run_is_the_whole_one(spec, target, tmp_path):
    train(spec("one"), target=target)
    train(spec("unclipped", "optimizer.clip_value=null", "optimizer.clip_norm=null"), target=target)
    assert not torch.allclose(weights(spec("unclipped")), weights(spec("one")), atol=1e-4)
    run_two(spec("two", *FSDP))
    assert_same_run(spec("one"), spec("two"))
    one, two = checkpoint(spec("one")), checkpoint(spec("two"))
    assert two.head.keys() == one.head.keys()
    assert two.optimizer["param_groups"] == one.optimizer["param_groups"]
    torch.testing.assert_close(two.optimizer["state"], one.optimizer["state"], atol=1e-5, rtol=1e-3)
    for folder in ("head", "best"):
        mine, theirs = (
            load_file(tmp_path / output / folder / "model.safetensors") for output in ("two", "one")
        )
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)  # in bfloat16


def test_a_run_is_resumed_with_and_without_sharding(spec, target):
    train(spec("one"), target=target)
    for output in ("again", "whole"):
        run_two(spec(output, *FSDP, "steps=3"))
    run_two(spec("again", *FSDP), resume=True)
    train(spec("whole"), target=target, resume=True)
    train(spec("cut", "steps=3"), target=target)
    run_two(spec("cut", *FSDP), resume=True)
    for output in ("again", "whole", "cut"):
        assert_same_run(spec("one"), spec(output))


def test_batches_of_a_sharded_step_add_up(spec, target):
    train(spec("one"), target=target)
    run_two(spec("two", "batch=1", "accumulate=2", "sharding=fsdp"))
    assert_same_run(spec("one"), spec("two"))


def test_one_process_has_nothing_to_cut(spec, target):
    head = tiny_head(target)
    whole = weights_of(head, head.train_states, Processes(), sharding="fsdp")
    assert not isinstance(whole, Sharded)


class _Odd:
    """A head that never calls its module, and has weights of its own behind the states.

    The rows of neither weight can be halved.
    """

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.module = nn.ParameterDict(
            {
                "inner": nn.Parameter(torch.randn(3, 4, generator=generator)),
                "outer": nn.Parameter(torch.randn(1, 3, generator=generator)),
            }
        )

    def train_states(self, x):
        return x @ self.module["inner"].T

    def logits(self, states):
        return states.tanh() @ self.module["outer"].T


def _step(weights, head, x):
    """Take a step of AdamW on the sum of a function, and return the optimizer."""
    optimizer = torch.optim.AdamW(weights.parameters, lr=0.1)
    with torch.no_grad():
        weights.states(x)  # as for the levels that are fed back
    head.logits(weights.states(x)).square().sum().backward()
    weights.reduce()
    nn.utils.clip_grad_norm_(weights.parameters, 0.5)
    optimizer.step()
    return optimizer


def _odd_head():
    processes = Processes.join(TargetSpec(device="cpu"))
    whole, cut = _Odd(), _Odd()
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    _step(weights_of(whole, whole.train_states, Processes(), sharding="none"), whole, x)
    weights = weights_of(cut, cut.train_states, processes, sharding="fsdp")
    optimizer = _step(weights, cut, x[processes.rank])
    with weights.whole():
        for name, parameter in whole.module.items():
            torch.testing.assert_close(cut.module[name].data, parameter.data)
    state = weights.gather(optimizer.state_dict()["state"])
    assert state[0]["exp_avg"].shape == ((3, 4) if processes.main else (0,))
    processes.part()


def test_a_head_may_use_its_weights_however_it_likes():
    run_together(_odd_head)


def _half():
    processes = Processes.join(TargetSpec(device="cpu"))
    target = tiny_target()
    head = tiny_head(target)
    size = sum(parameter.numel() for parameter in head.module.parameters())
    before = copy.deepcopy(head.module.state_dict())
    weights = weights_of(head, head.train_states, processes, sharding="fsdp")
    optimizer = torch.optim.AdamW(weights.parameters, lr=1.0)
    place = torch.arange(6)[None]
    visible = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    features = [torch.ones(1, 6, 32)]
    weights.states(place + 3, place + 2, features, place, visible).sum().backward()
    optimizer.step()

    def here(tensors):
        return sum(tensor.to_local().numel() for tensor in tensors)

    assert here(head.module.parameters()) == size // 2
    assert here(parameter.grad for parameter in head.module.parameters()) == size // 2
    for moment in ("exp_avg", "exp_avg_sq"):
        assert here(entry[moment] for entry in optimizer.state.values()) == size // 2
    with weights.whole():
        after = head.module.state_dict()
        assert all(after[name].shape == old.shape for name, old in before.items())
        assert not any(torch.equal(after[name], old) for name, old in before.items())
    assert here(head.module.parameters()) == size // 2
    processes.part()


def test_each_of_two_processes_holds_half():
    run_together(_half)
