"""What is drawn from uniforms: each outcome as often as it should be, none that has no weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle.plugin.draws import UniformDraws


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
