"""Sampling parameters against transformers' own processors, and the seam of all randomness."""

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

from eagle.plugin.sampling import Sampling, SamplingParams, UniformDraws, probabilities


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


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_categorical_inverts_the_cumulative_sum_and_never_draws_weight_zero(weights, uniform):
    drawn = UniformDraws(torch.tensor([[uniform]], dtype=torch.float64)).categorical(
        torch.tensor([weights], dtype=torch.float64)
    )[0]
    if sum(weights) == 0:
        assert drawn == 0
        return
    assert weights[drawn] > 0
    assert sum(weights[:drawn]) <= uniform * sum(weights) + 1e-9


def test_weight_zero_is_not_drawn_where_the_sum_is_rounded_in_parallel(monkeypatch):
    """A parallel sum, as on CUDA, may differ in its last bit where nothing is added."""
    serial = torch.Tensor.cumsum

    def parallel(self, dim):
        total = serial(self, dim)
        up = torch.nextafter(total, torch.full_like(total, torch.inf))
        return total.where(torch.arange(total.shape[-1]) % 2 == 0, up)

    monkeypatch.setattr(torch.Tensor, "cumsum", parallel)
    weights = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        uniforms = torch.full((3, 1), uniform, dtype=torch.float64)
        drawn = UniformDraws(uniforms).categorical(weights)
        assert drawn[0] in (0, 2)
        assert drawn[1:].tolist() == [2, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weight_zero_is_not_drawn_on_a_gpu():
    generator = torch.Generator("cuda").manual_seed(0)
    weights = torch.rand(64, 50_000, generator=generator, device="cuda")
    weights = weights * (torch.rand(weights.shape, generator=generator, device="cuda") < 0.01)
    # Thresholds at the very steps of the sum, where a last bit decides.
    total = weights.double().cumsum(-1)
    step = torch.randint(50_000, (64, 1), generator=generator, device="cuda")
    uniforms = (total.gather(1, step) / total[:, -1:]).clamp(max=1 - 2.0**-53)
    for _ in range(200):
        drawn = UniformDraws(uniforms).categorical(weights)
        assert (weights.gather(1, drawn[:, None]) > 0).all()
        step = torch.randint(50_000, (64, 1), generator=generator, device="cuda")
        uniforms = (total.gather(1, step) / total[:, -1:]).clamp(max=1 - 2.0**-53)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_uniform_stays_inside_the_distribution(dtype):
    last = torch.nextafter(torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
    weights = torch.tensor([[0.1, 0.2, 0.7, 0.0]], dtype=torch.float32)
    assert UniformDraws(last).categorical(weights).item() == 2


def test_zero_never_accepts_probability_zero_and_one_is_certain():
    draws = UniformDraws(torch.zeros(2, 2, dtype=torch.float64))
    assert draws.bernoulli(torch.tensor([0.0, 1.0])).tolist() == [False, True]
    last = torch.nextafter(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1).double())
    assert UniformDraws(last).bernoulli(torch.tensor([0.0, 1.0])).tolist() == [False, True]


def test_drawing_more_than_declared_is_an_error():
    draws = UniformDraws(torch.zeros(1, 1, dtype=torch.float64))
    draws.bernoulli(torch.tensor([0.5]))
    with pytest.raises(IndexError, match="declared"):
        draws.bernoulli(torch.tensor([0.5]))
