"""Sampling parameters against transformers' own processors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eagle.plugin.sampling import Sampling, SamplingParams, probabilities


def _transformers(logits, params):
    scores = TemperatureLogitsWarper(params.temperature)(None, logits)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    return scores.softmax(-1)


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 20),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
def test_distribution_is_that_of_transformers(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = probabilities(logits, Sampling.of([params] * 3, "cpu"))
    torch.testing.assert_close(ours, _transformers(logits, params), atol=1e-6, rtol=1e-4)


def test_every_slot_has_its_own_parameters():
    logits = torch.randn(3, 2, 16)
    params = [SamplingParams(temperature=t, top_k=k) for t, k in ((0, 0), (1, 2), (0.5, 0))]
    together = probabilities(logits, Sampling.of(params, "cpu"))
    for slot, one in enumerate(params):
        alone = probabilities(logits[slot : slot + 1], Sampling.of([one], "cpu"))
        torch.testing.assert_close(together[slot : slot + 1], alone)


def test_temperature_zero_takes_the_first_of_equal_logits():
    probs = probabilities(torch.tensor([[1.0, 3.0, 3.0]]), Sampling.of([SamplingParams()], "cpu"))
    assert probs.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e30])
def test_extreme_temperatures_give_a_distribution(temperature):
    sampling = Sampling.of([SamplingParams(temperature=temperature)], "cpu")
    probs = probabilities(torch.tensor([[100.0, 0.0, -100.0]]), sampling)
    assert probs.isfinite().all()
    assert probs.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_logits_stay_visible(temperature):
    sampling = Sampling.of([SamplingParams(temperature=temperature)], "cpu")
    assert probabilities(torch.tensor([[0.0, torch.nan]]), sampling).isnan().any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"temprature": 1},
    ],
)
def test_refuses_impossible_parameters(wrong):
    with pytest.raises(ValidationError):
        SamplingParams(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is compiled: tests/gpu")
@pytest.mark.parametrize("shape", [(1, 49152), (1, 1, 49152), (2, 49152)])
def test_probabilities_are_made_kernels_of_up_to_where_triton_looks_for_a_device(shape):
    """Over one row of a large vocabulary PyTorch's compiler failed at what it made of softmax."""
    from torch._inductor import config
    from torch._inductor.exc import InductorError

    torch._dynamo.reset()
    params = [SamplingParams(temperature=0.7)] * shape[0]
    sampling = Sampling.of(params, "cpu")
    compiled = torch.compile(probabilities, fullgraph=True, dynamic=False)
    through_triton = config.patch(cpu_backend="triton", fx_graph_cache=False)
    with through_triton, pytest.raises(InductorError, match="active drivers"):
        compiled(torch.randn(shape), sampling)
