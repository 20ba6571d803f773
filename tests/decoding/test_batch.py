"""When the next cycle may start before the tokens of the one before are delivered."""

import pytest
import torch

from eagle.decoding.batch import Batch, failed_last
from eagle.decoding.requests import Request
from eagle.plugin.sampling import SamplingParams

EOS = 2


def batch_of(*params, processors=(), free=1):
    batch = Batch(len(params) + free, torch.float32)
    for slot, one in enumerate(params):
        request = Request(slot, [5, 6], one, one.max_new_tokens, frozenset([EOS]), None)
        request.processors = processors
        batch.requests[slot] = request
    return batch


@pytest.mark.parametrize(
    ("outcome", "goes_on"),
    [
        ([2, 0, 7, 8, 0], True),
        ([2, 0, 7, EOS, 0], False),
        ([1, 0, 7, EOS, 0], True),  # what stands behind the committed tokens means nothing
        ([3, 0, 7, 8, 9], False),  # the longest answer
        ([2, 1, 7, 8, 0], False),  # NaN
    ],
)
@pytest.mark.parametrize("waiting", [False, True])
def test_a_cycle_starts_ahead_while_no_request_ends(outcome, goes_on, waiting):
    params = SamplingParams(max_new_tokens=3), SamplingParams(max_new_tokens=9)
    batch = batch_of(*params, free=0 if waiting else 1)
    other, idle = [1, 0, 7, 0, 0], [3, 2, EOS, EOS, EOS]
    assert batch.goes_on([outcome, other, idle][: len(batch.requests)], waiting=waiting) is goes_on


def test_a_free_slot_is_filled_before_the_next_cycle():
    batch = batch_of(SamplingParams())
    outcomes = [[1, 0, 7], [0, 0, 0]]
    assert batch.goes_on(outcomes, waiting=False)
    assert not batch.goes_on(outcomes, waiting=True)


def test_a_slot_that_a_stop_string_may_free_is_not_given_away_meanwhile():
    batch = batch_of(SamplingParams(stop=("x",)), free=0)
    outcomes = [[1, 0, 7]]
    assert batch.goes_on(outcomes, waiting=False)
    assert not batch.goes_on(outcomes, waiting=True)


def test_processors_need_the_text_before_the_next_cycle():
    batch = batch_of(SamplingParams(), processors=(lambda ids, scores: scores,))
    assert not batch.goes_on([[1, 0, 7], [0, 0, 0]], waiting=False)


def test_failures_come_last():
    outcomes = [[1, 2, 7], [1, 0, 8], [1, 1, 9], [1, 0, 5]]
    assert [slot for slot, _ in failed_last(enumerate(outcomes))] == [1, 3, 0, 2]
