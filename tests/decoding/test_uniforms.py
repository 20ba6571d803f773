"""Every request reads its own uniforms in order, whenever they are drawn."""

import pytest
import torch

from eagle.decoding.uniforms import Feed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
COUNT = 3


class Request:
    """Its n-th uniform is n, after its name in hundreds."""

    def __init__(self, name):
        self.next = 100 * name

    def uniforms(self, count):
        self.next += count
        return torch.arange(self.next - count, self.next, dtype=torch.float64)


@pytest.fixture(params=DEVICES)
def uniforms(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.full((2, COUNT), -1.0, dtype=torch.float64, device=request.param)


def first(uniforms):
    return uniforms[:, 0].tolist()


def test_each_cycle_reads_the_next_ones(uniforms):
    feed, requests = Feed(uniforms), [Request(1), Request(2)]
    for cycle in range(50):
        feed.fill(requests)
        assert uniforms.tolist() == [
            [100 * name + COUNT * cycle + i for i in range(COUNT)] for name in (1, 2)
        ]
        feed.refill(requests)


def test_what_no_cycle_has_read_is_kept(uniforms):
    feed, requests = Feed(uniforms), [Request(1), Request(2)]
    feed.fill(requests)
    feed.fill(requests)
    assert first(uniforms) == [100, 200]
    feed.refill(requests)
    for _ in range(3):  # greedy cycles, say
        feed.fill(requests)
    assert first(uniforms) == [103, 203]


def test_a_slot_given_to_another_request_reads_that_ones(uniforms):
    feed, one, other, late = Feed(uniforms), Request(1), Request(2), Request(3)
    feed.fill([one, None])
    assert first(uniforms) == [100, 0]
    feed.refill([one, None])
    feed.fill([one, other])
    assert first(uniforms) == [103, 200], "the one beside it goes on"
    feed.refill([one, other])
    feed.fill([None, other])
    assert uniforms[1, 0] == 203
    feed.fill([late, other])
    assert first(uniforms) == [300, 203]
