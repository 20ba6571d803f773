"""Eight requests that start and end at different places say what each of them says alone."""

from __future__ import annotations

import copy

import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.target.causal_lm import Target
from eagle.testing import tiny_text
from tests.exact.tiny import DEVICES

LENGTHS = (1, 2, 3, 5, 8, 13, 34, 89)
ENDS = [20, 41]  # in a text that counts upwards, one of them comes soon
TREES = {
    "chain": {"name": "chain", "depth": 4},
    "static": {"name": "static", "tree": "reference-25"},
    "static, top-k": {"name": "static", "branching": [3, 2, 1], "sampling": "top-k"},
    "dynamic": {"name": "dynamic", "nodes": 20, "depth": 5, "top_k": 4},
    "none": {"name": "none"},
}


@pytest.fixture(scope="module")
def prompts():
    text = tiny_text(8, max(LENGTHS), torch.Generator().manual_seed(7))
    return [row[:length].tolist() for row, length in zip(text, LENGTHS, strict=True)]


def reference(target, prompt, params):
    with target.stock() as model:
        out = model.generate(
            torch.tensor([prompt], device=target.device),
            max_new_tokens=params.max_new_tokens,
            do_sample=False,
            eos_token_id=[-1] if params.ignore_eos else ENDS,
            pad_token_id=0,
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, "mixed"])
@pytest.mark.parametrize("tree", TREES)
def test_a_batch_of_eight_says_what_each_says_alone(
    tree, temperature, device, spec, pair, prompts, monkeypatch
):
    target = pair[0]
    if device != "cpu":
        target = Target(copy.deepcopy(target.model).to(device), None, "tiny")  # others share it
    monkeypatch.setattr(target.model.generation_config, "eos_token_id", ENDS)
    params = [
        SamplingParams(
            temperature=seed % 2 * 0.8 if temperature == "mixed" else temperature,
            seed=seed,
            max_new_tokens=(60, 7, 33)[seed % 3],
            ignore_eos=seed == 6,
        )
        for seed in range(8)
    ]
    try:
        alone = Decoder.from_spec(spec(tree=TREES[tree]), target=target)
        expected = [
            alone.generate(prompt, own) for prompt, own in zip(prompts, params, strict=True)
        ]
        # Of three slots, each is used again while the others are in the middle of a text.
        for size in (8, 3):
            runtime = {"max_batch": size}
            decoder = Decoder.from_spec(spec(tree=TREES[tree], runtime=runtime), target=target)
            together = decoder.generate(prompts, params)
            assert [r.tokens for r in together] == [r.tokens for r in expected]
            assert [r.finish_reason for r in together] == [r.finish_reason for r in expected]
        assert {r.finish_reason for r in expected} == {"stop", "length"}
        assert len({r.stats.cycles for r in expected}) > 2, "they all ended together"
        for prompt, own, result in zip(prompts, params, expected, strict=True):
            if own.temperature == 0:
                assert result.tokens == reference(target, prompt, own)
    finally:
        target.model.to("cpu")
