"""Log probabilities: those of transformers' own logits, whatever decides the tokens."""

import math

import pytest
import torch
from transformers import TemperatureLogitsWarper

from eagle import Decoder, Engine, SamplingParams
from eagle.errors import RequestError
from eagle.plugin.sampling import MOST_LOGPROBS

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43], [9, 11], list(range(3, 63))]
TREES = [
    {"name": "static", "branching": [3, 2, 1]},
    {"name": "dynamic", "nodes": 20, "depth": 5, "top_k": 4},
    {"name": "none"},
]


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(runtime={"max_batch": 3}), target=pair[0])


def assert_of_transformers(target, result, count):
    """Compare a result's with the log-softmax of one plain pass over its text."""
    text = torch.tensor([[*result.prompt_tokens, *result.tokens]])
    with target.stock() as model, torch.inference_mode():
        logits = model(text).logits[0, len(result.prompt_tokens) - 1 : -1]
    right = logits.float().log_softmax(-1)
    assert [one.token for one in result.logprobs] == list(result.tokens)
    for one, row in zip(result.logprobs, right, strict=True):
        assert one.logprob == pytest.approx(row[one.token].item(), abs=1e-4)
        assert len(one.top) == count
        best = row.topk(count).values.tolist()
        assert [logprob for _, logprob in one.top] == pytest.approx(best, abs=1e-4)
        for token, logprob in one.top:
            assert logprob == pytest.approx(row[token].item(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("tree", TREES, ids=["static", "dynamic", "none"])
def test_they_are_those_of_transformers(tree, temperature, spec, pair):
    changes = {"tree": tree} | ({"head": {"name": "none"}} if tree["name"] == "none" else {})
    decoder = Decoder.from_spec(spec(**changes), target=pair[0])
    result = decoder.generate(
        PROMPTS[0], temperature=temperature, top_k=9, seed=3, max_new_tokens=30,
        ignore_eos=True, logprobs=4,
    )  # fmt: skip
    assert len(result.tokens) == 30
    assert_of_transformers(pair[0], result, 4)


def test_in_a_batch_those_who_ask_are_told_and_say_what_they_say_otherwise(decoder, pair):
    asked = [None, MOST_LOGPROBS, 0, None, 3]
    params = [
        SamplingParams(
            temperature=seed % 2,
            seed=seed,
            max_new_tokens=9 + 7 * seed,
            ignore_eos=True,
            logprobs=k,
        )
        for seed, k in enumerate(asked)
    ]
    events = {index: [] for index in range(5)}
    results = {}
    for event in decoder.stream(PROMPTS, params):
        events[event.index].append(event)
        results[event.index] = event.result
    for index, (prompt, own) in enumerate(zip(PROMPTS, params, strict=True)):
        result = results[index]
        silent = decoder.generate(prompt, own.model_copy(update={"logprobs": None}))
        assert result.tokens == silent.tokens
        assert silent.logprobs is None
        if own.logprobs is None:
            assert result.logprobs is None
            assert all(event.logprobs is None for event in events[index])
            continue
        assert_of_transformers(pair[0], result, own.logprobs)
        streamed = [one for event in events[index] for one in event.logprobs]
        assert tuple(streamed) == result.logprobs
        assert all(len(event.logprobs) == len(event.tokens) for event in events[index])


def test_processors_and_temperature_decide_the_token_and_not_what_is_said_of_it(decoder, pair):
    only = 17

    def one_token(ids, scores):
        return torch.full_like(scores, -math.inf).index_fill_(1, torch.tensor([only]), 0.0)

    for processors in ([one_token], [TemperatureLogitsWarper(3.0)]):
        result = decoder.generate(
            PROMPTS[1], processors=processors, max_new_tokens=8, ignore_eos=True, logprobs=2
        )
        assert_of_transformers(pair[0], result, 2)


def test_they_end_where_the_tokens_end(decoder, pair):
    whole = decoder.generate(PROMPTS[0], max_new_tokens=24, ignore_eos=True, logprobs=1)
    for count in range(1, 9):
        cut = decoder.generate(PROMPTS[0], max_new_tokens=count, ignore_eos=True, logprobs=1)
        assert len(cut.logprobs) == count
        assert [one.token for one in cut.logprobs] == list(whole.tokens[:count])


def test_an_engine_gives_them(decoder, pair):
    with Engine(decoder) as engine:
        loud = engine.submit(PROMPTS[0], max_new_tokens=12, ignore_eos=True, logprobs=2)
        quiet = engine.submit(PROMPTS[1], max_new_tokens=12, ignore_eos=True)
        assert_of_transformers(pair[0], loud.result(60), 2)
        assert quiet.result(60).logprobs is None


@pytest.mark.parametrize("count", [-1, MOST_LOGPROBS + 1, 1.5])
def test_other_numbers_are_refused(count, decoder):
    with pytest.raises(RequestError, match="logprobs"):
        decoder.generate(PROMPTS[0], logprobs=count)


def test_statistics_say_which_draft_positions_were_accepted(decoder):
    with Engine(decoder) as engine:
        before = engine.stats()
        handle = engine.submit(PROMPTS[0], max_new_tokens=41, ignore_eos=True)
        stats, events = handle.result(60).stats, list(handle)
        after = engine.stats()
    drafted = [event.drafted for event in events[1:]]
    assert events[0].drafted == 0
    assert sum(stats.accepted_per_position) == sum(drafted) > 0
    assert stats.accepted_per_position[0] == sum(count > 0 for count in drafted)
    assert list(stats.accepted_per_position) == sorted(stats.accepted_per_position, reverse=True)
    assert stats.seconds_per_token * 40 == pytest.approx(
        stats.seconds - stats.time_to_first_token, abs=1e-6
    )
    grown = [
        new - old
        for new, old in zip(after.accepted_per_position, before.accepted_per_position, strict=True)
    ]
    assert grown[: len(stats.accepted_per_position)] == list(stats.accepted_per_position)
    assert after.verified - before.verified == stats.cycles
    assert after.cycles - before.cycles >= stats.cycles
    assert after.prompt_tokens - before.prompt_tokens == len(PROMPTS[0])
