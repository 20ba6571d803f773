import torch

from eagle.train.objective.noise import Noise
from eagle.train.spec.config import NoiseSpec

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0] * 8 + [1] * 24, [0] * 32])


def noise(step=0, part=0, parts=1, rows=DOCUMENTS, **spec):
    zeros = torch.zeros(*rows.shape, 100)
    return Noise(NoiseSpec(**spec), 7, CPU)(zeros, step, rows, part, parts)


def test_is_uniform_within_its_amplitude():
    found = noise(uniform=0.2)
    assert 0.19 < found.max() <= 0.2
    assert -0.2 <= found.min() < -0.19
    assert abs(found.mean()) < 0.01


def test_each_step_has_its_own_and_always_the_same():
    assert torch.equal(noise(step=3), noise(step=3))
    assert not torch.equal(noise(step=3), noise(step=4))


def test_length_scaling_goes_by_the_text_not_by_the_row():
    plain, scaled = noise(), noise(scaling="length")
    torch.testing.assert_close(scaled[0, :8], plain[0, :8] * 512 / 8)
    torch.testing.assert_close(scaled[0, 8:], plain[0, 8:] * 512 / 24)
    torch.testing.assert_close(scaled[1], plain[1] * 512 / 32)


def test_does_not_depend_on_how_rows_are_shared_out():
    shared = [noise(part=part, parts=2, rows=DOCUMENTS[part : part + 1]) for part in range(2)]
    assert torch.equal(torch.cat(shared), noise())


def test_none_is_none():
    assert not noise(uniform=0).any()
