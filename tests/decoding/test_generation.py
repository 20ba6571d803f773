"""What a model's generation config does to every text, held against transformers' own generate."""

import logging

import pytest
import torch
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from eagle import Decoder
from eagle.bench.compare import compare_decoder
from eagle.bench.verify import verify_greedy
from eagle.decoding import generation as module
from eagle.decoding.generation import Defaults
from eagle.errors import RequestError, TargetError
from eagle.plugin.sampling import SamplingParams

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18, 20, 10, 12], [40]]
SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.4},
    "ngram": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[9], [13, 14], [20, 22], [2]]},
    "bias": {"sequence_bias": [[[9], -5.0], [[13, 14], 4.0]]},
    "suppressed": {"suppress_tokens": [8, 16, 24]},
    "at first": {"begin_suppress_tokens": [8, 22, 41, 42, 43, 44]},
    "prompt's": {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    "longer": {"min_length": 20},
    "new": {"min_new_tokens": 12},
    "forced": {"forced_eos_token_id": 33, "forced_bos_token_id": 50},
    "decay": {"exponential_decay_length_penalty": (4, 1.4)},
    "many": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [11],
        "begin_suppress_tokens": [8],
        "min_new_tokens": 6,
        "bad_words_ids": [[12, 13]],
    },
}
ENDS = [2, 17, 31, 58]  # some of which the pair says, so that what keeps a text from ending shows


@pytest.fixture
def configured(pair, monkeypatch):
    """Give the pair's model a generation config of some fields."""

    def configure(**fields):
        config = GenerationConfig(eos_token_id=ENDS, pad_token_id=0, **fields)
        monkeypatch.setattr(pair[0].model, "generation_config", config)
        return pair[0]

    return configure


def stock(target, prompt, count):
    """What generate says, and nothing but its generation config decides it."""
    with torch.inference_mode(), target.stock() as model:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_text_is_that_of_generate(name, spec, configured):
    plain = [stock(configured(), prompt, 32) for prompt in PROMPTS]
    target = configured(**SETTINGS[name])
    decoder = Decoder.from_spec(spec(), target=target)
    assert set(decoder.defaults.fields) == set(SETTINGS[name])
    expected = [stock(target, prompt, 32) for prompt in PROMPTS]
    assert expected != plain, "it makes no difference, so nothing is shown"
    results = decoder.generate(PROMPTS, max_new_tokens=32)
    assert [result.tokens for result in results] == expected
    assert any(max(r.stats.accepted_per_cycle, default=0) > 1 for r in results)


def test_the_spec_may_leave_it_out(spec, configured):
    plain = stock(configured(), PROMPTS[0], 32)
    target = configured(**SETTINGS["many"])
    decoder = Decoder.from_spec(spec(target={"generation_config": "ignore"}), target=target)
    assert not decoder.defaults.fields
    assert decoder.generate(PROMPTS[0], max_new_tokens=32).tokens == plain


@pytest.mark.parametrize("new", [0, 3])
def test_the_least_of_new_tokens_takes_the_place_of_the_least_length(new, spec, configured):
    alone = stock(configured(min_length=40), PROMPTS[2], 48)
    target = configured(min_length=40, min_new_tokens=new)
    expected = stock(target, PROMPTS[2], 48)
    assert expected != alone, "it makes no difference, so nothing is shown"
    decoder = Decoder.from_spec(spec(), target=target)
    assert decoder.generate(PROMPTS[2], max_new_tokens=48).tokens == expected


def test_a_processor_of_a_request_takes_the_place_of_the_configs(spec, configured):
    target = configured(repetition_penalty=1.3, no_repeat_ngram_size=2)
    decoder = Decoder.from_spec(spec(), target=target)
    own = [RepetitionPenaltyLogitsProcessor(2.0)]
    with torch.inference_mode(), target.stock() as model:
        out = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=24, logits_processor=own)
    found = decoder.generate(PROMPTS[1], max_new_tokens=24, processors=own).tokens
    assert found == tuple(out[0, len(PROMPTS[1]) :].tolist())
    assert found != stock(target, PROMPTS[1], 24)


def test_where_no_token_ends_a_text_nothing_keeps_it_from_ending(spec, configured):
    target = configured(min_new_tokens=12, suppress_tokens=[8])
    decoder = Decoder.from_spec(spec(), target=target)
    kept = decoder.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True).tokens
    target = configured(suppress_tokens=[8])
    bare = Decoder.from_spec(spec(), target=target)
    assert kept == bare.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True).tokens


def test_sampling_defaults_are_not_taken_over(spec, configured):
    target = configured(do_sample=True, temperature=2.0, top_k=3, top_p=0.5, max_new_tokens=3)
    decoder = Decoder.from_spec(spec(), target=target)
    assert not decoder.defaults.fields
    assert not decoder.defaults.left_out
    runs = {decoder.generate(PROMPTS[0], max_new_tokens=20).tokens for _ in range(3)}
    assert len(runs) == 1
    assert len(runs.pop()) > 3


def test_what_is_applied_and_what_is_not_is_said_once(spec, configured, caplog, monkeypatch):
    monkeypatch.setattr(module, "_told", set())
    target = configured(repetition_penalty=1.3, num_beams=4, stop_strings=["x"])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Decoder.from_spec(spec(), target=target)
    applied, left_out = caplog.messages
    assert "repetition_penalty=1.3, which is applied" in applied
    assert "target.generation_config=ignore" in applied
    assert "num_beams, stop_strings, which transformers' generate applies and this" in left_out


@pytest.mark.parametrize(
    "wrong", [{"repetition_penalty": "x"}, {"no_repeat_ngram_size": 2.5}, {"bad_words_ids": [3]}]
)
def test_a_value_that_transformers_refuses_is_refused(wrong):
    config = GenerationConfig()
    for name, value in wrong.items():
        setattr(config, name, value)
    with pytest.raises(TargetError, match=r"'tiny' cannot be applied \(\w+\).*=ignore"):
        Defaults(config, "tiny", "cpu", [2])


def test_baselines_have_the_same_penalties(spec, configured):
    target = configured(repetition_penalty=1.2, no_repeat_ngram_size=3)
    decoder = Decoder.from_spec(spec(), target=target)
    found = compare_decoder(decoder, PROMPTS, SamplingParams(max_new_tokens=16))
    assert found.against("plain").identical
    assert found.against("hf").identical
    with pytest.raises(RequestError, match=r"verify with target.generation_config=ignore"):
        verify_greedy(decoder, PROMPTS, max_new_tokens=4)
