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
    ("outcome", "ending"),
    [
        ([2, 0, 7, 8, 0], []),
        ([2, 0, 7, EOS, 0], [0]),
        ([1, 0, 7, EOS, 0], []),  # what stands behind the committed tokens means nothing
        ([3, 0, 7, 8, 9], [0]),  # the longest answer
        ([2, 1, 7, 8, 0], None),  # NaN
    ],
)
def test_who_ends_is_known_before_tokens_are_delivered(outcome, ending):
    batch = batch_of(SamplingParams(max_new_tokens=3), SamplingParams(max_new_tokens=9))
    other, idle = [1, 0, 7, 0, 0], [3, 2, EOS, EOS, EOS]
    assert batch.ending(enumerate([outcome, other, idle])) == ending


def test_what_a_stop_string_says_is_known_later():
    batch = batch_of(SamplingParams(stop=("x",)), free=0)
    outcomes = [(0, [1, 0, 7])]
    assert batch.ending(outcomes) == []
    assert batch.ending(outcomes, stops=True) is None


def test_processors_need_the_text_before_the_next_cycle():
    batch = batch_of(SamplingParams(), processors=(lambda ids, scores: scores,))
    assert batch.ending([(0, [1, 0, 7])]) is None


@pytest.mark.parametrize(
    ("temperature", "seed", "seeded"),
    [(0.0, 3, False), (0.7, None, False), (0.7, 0, True), (0.7, 3, True)],
)
def test_a_seed_that_was_given_counts_where_it_is_sampled_from(temperature, seed, seeded):
    asked = SamplingParams(temperature=temperature, seed=seed)
    others = SamplingParams(seed=4), SamplingParams(temperature=1.0)
    for places in ((asked, *others), (*others, asked)):
        batch = batch_of(*places)
        assert batch.seen(4).seeded is seeded
        assert batch.seen(4).sampled
        batch.requests[places.index(asked)] = None
        assert not batch.seen(4).seeded, "nobody has it any more"


def test_failures_come_last():
    outcomes = [[1, 2, 7], [1, 0, 8], [1, 1, 9], [1, 0, 5]]
    assert [slot for slot, _ in failed_last(enumerate(outcomes))] == [1, 3, 0, 2]
