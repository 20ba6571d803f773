"""Comparing with plain decoding: fair figures, and identity claimed only where it is known."""

from __future__ import annotations

import json

import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.bench.compare import (
    Comparison,
    Round,
    Run,
    compare_decoder,
    plain_decoder,
    stock_generate,
)
from eagle.bench.prompts import read_prompts
from eagle.errors import DataError

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18]]


def made(tokens, seconds, cycles=None):
    return Run(tuple(tokens), seconds, cycles)


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(), target=pair[0])


def test_speedups_are_medians_of_paired_ratios():
    rounds = tuple(
        Round(n, made(range(10), 1.0, 3), made(range(10), slow), made(range(10), 2 * slow))
        for n, slow in enumerate((2.0, 3.0, 10.0))
    )
    comparison = Comparison(rounds, greedy=True)
    plain, hf = comparison.against("plain"), comparison.against("hf")
    assert (plain.speedup, plain.lowest, plain.highest) == (3.0, 2.0, 10.0)
    assert hf.speedup == 6.0
    assert comparison.tokens_per_second == 10.0
    assert plain.tokens_per_second == 2.0
    assert comparison.tau == 3.0, "the first token is not a cycle's"


def test_identity_is_counted_at_temperature_0_and_unknown_above():
    rounds = (
        Round(0, made([1, 2], 1.0, 1), made([1, 2], 1.0), made([1, 3], 1.0)),
        Round(1, made([4, 5], 1.0, 1), made([4, 5], 1.0), made([4, 5], 1.0)),
    )
    greedy, sampled = Comparison(rounds, greedy=True), Comparison(rounds, greedy=False)
    assert (greedy.against("plain").same, greedy.against("plain").identical) == (2, True)
    assert (greedy.against("hf").same, greedy.against("hf").identical) == (1, False)
    assert (sampled.against("plain").same, sampled.against("plain").identical) == (None, None)


def test_ratios_are_of_speed_where_lengths_differ():
    rounds = (Round(0, made(range(10), 1.0, 3), made(range(5), 1.0), made(range(20), 1.0)),)
    comparison = Comparison(rounds, greedy=False)
    assert comparison.against("plain").speedup == 2.0
    assert comparison.against("hf").speedup == 0.5


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {}])
def test_all_three_give_the_same_tokens_in_float32(decoder, options):
    done = []
    params = SamplingParams(max_new_tokens=30, **options)
    comparison = compare_decoder(
        decoder, PROMPTS, params, repeats=2, progress=lambda *counts: done.append(counts)
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [r.prompt for r in comparison.rounds] == [0, 1, 0, 1]
    assert comparison.against("plain").identical is True
    assert comparison.against("hf").identical is True
    assert comparison.tau > 2
    assert all(r.plain.cycles == len(r.plain.tokens) - 1 for r in comparison.rounds)


def test_an_answer_cut_short_by_the_capacity_is_cut_for_all(spec, pair):
    short = Decoder.from_spec(spec(runtime={"max_length": 12}), target=pair[0])
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    (only,) = compare_decoder(short, PROMPTS[:1], params).rounds
    assert len(only.spec.tokens) == len(only.plain.tokens) == len(only.hf.tokens) == 9


def test_transformers_ends_where_the_decoder_does(decoder, pair, monkeypatch):
    target = pair[0]
    whole = decoder.generate(PROMPTS[0], max_new_tokens=30, ignore_eos=True).tokens
    end = next(token for token in whole if whole.index(token) > 5)
    monkeypatch.setattr(target.model.generation_config, "eos_token_id", [end])
    params = SamplingParams(max_new_tokens=30)
    run = stock_generate(target, PROMPTS[0], params)
    assert (
        run.tokens == whole[: whole.index(end) + 1] == decoder.generate(PROMPTS[0], params).tokens
    )


def test_the_models_generation_defaults_and_the_global_generator_are_left_alone(pair, monkeypatch):
    target = pair[0]
    config = target.model.generation_config
    monkeypatch.setattr(config, "repetition_penalty", 50.0)
    params = SamplingParams(max_new_tokens=20, temperature=1.0, seed=3, ignore_eos=True)
    state = torch.get_rng_state()
    first = stock_generate(target, PROMPTS[0], params).tokens
    assert target.model.generation_config is config
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(config, "repetition_penalty", 1.0)
    assert stock_generate(target, PROMPTS[0], params).tokens == first


def test_the_plain_decoder_shares_target_and_runtime(spec, pair):
    measured = Decoder.from_spec(spec(runtime={"max_batch": 2, "max_length": 99}), target=pair[0])
    plain = plain_decoder(measured)
    assert plain.target is measured.target
    assert plain.spec.runtime == measured.spec.runtime
    assert plain.resolved.lossless
    assert plain.resolved.tree.shape.nodes == 1


def test_prompts_are_first_turns_of_jsonl_or_lines_of_text(tmp_path):
    turns, lines = tmp_path / "a.jsonl", tmp_path / "b.txt"
    turns.write_text(json.dumps({"turns": ["one", "and more"]}) + '\n\n{"turns": ["two"]}\n')
    lines.write_text("one\n\n two \n")
    assert read_prompts(turns) == read_prompts(lines) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no prompt"),
        ("\n\n", "holds no prompt"),
        ("hello\n", ":1: should be a JSON object"),
        ('{"turns": ["a"]}\n["b"]\n', ":2: should be a JSON object"),
        ('{"prompt": "a"}\n', ":1: should be a JSON object"),
        ('{"turns": [7]}\n', ":1: the first of its turns"),
        ('{"turns": [" "]}\n', ":1: the first of its turns"),
    ],
)
def test_a_file_that_is_not_of_prompts_is_refused(text, problem, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_prompts(file)
