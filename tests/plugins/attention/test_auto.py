"""What `auto` picks, and that it serves everything."""

import pytest
import torch

from eagle.cache.store import Step
from eagle.plugin.roles import BuildContext
from eagle.testing import check_attention_backend
from eagle_plugins.attention.auto import Auto, AutoConfig
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig
from eagle_plugins.attention.triton import MAX_NODES, TreePlan

CUDA = torch.cuda.is_available()
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]


def auto(device=None):
    return Auto(AutoConfig(), BuildContext(device=device and torch.device(device)))


def plan(backend, nodes, dtype=torch.float32, device="cpu"):
    step = Step.chain(torch.tensor([4], device=device), nodes, nodes + 4)
    return backend.plan(step, 2, 2, dtype)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_on_a_cpu_it_is_sdpa(device):
    assert isinstance(plan(auto(device), 5), torch.Tensor)
    check_attention_backend(auto(device), cases=5)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_a_gpu)])
def test_on_a_gpu_trees_go_through_the_kernel(device):
    backend = auto(device)
    assert isinstance(plan(backend, MAX_NODES, torch.bfloat16, device), TreePlan)
    assert isinstance(plan(backend, MAX_NODES + 1, torch.bfloat16, device), torch.Tensor)
    assert isinstance(plan(backend, 5, torch.float64, device), torch.Tensor)
    check_attention_backend(backend, device=device)


def test_heads_too_large_for_the_kernel_go_through_sdpa():
    backend, sdpa = auto(), Sdpa(SdpaConfig(), BuildContext())
    step = Step.chain(torch.tensor([4]), 3, 7)
    query, keys, values = torch.randn(1, 4, 3, 320), *torch.randn(2, 1, 2, 7, 320)
    dense = sdpa.plan(step, 4, 2, torch.float32)
    expected = sdpa.attend(query, keys, values, dense, 0.05)
    plan = TreePlan(step, torch.zeros(2, dtype=torch.int32))
    torch.testing.assert_close(backend.attend(query, keys, values, plan, 0.05), expected)
