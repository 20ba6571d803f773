"""The embedded model in float32 says at temperature 0 what transformers' generate says."""

from __future__ import annotations

import pytest

from eagle import Decoder

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(600)]

PROMPTS = [
    "Which is heavier, a litre of milk or a litre of water? Answer in one sentence.",
    "Write a Python function that returns the three largest numbers of a list.",
    "List the planets from the sun outwards, one per line.",
    "Hi!",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take? Think step by step.",
]
TOKENS = 32


@pytest.fixture(scope="module")
def decoder():
    overrides = ["target.dtype=float32", "target.device=cpu", f"runtime.max_batch={len(PROMPTS)}"]
    return Decoder.from_spec("eagle", overrides)


@pytest.fixture(scope="module")
def expected(decoder):
    tokenizer = decoder.target.tokenizer
    with decoder.target.stock() as model:
        return [
            model.generate(
                **tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    add_generation_prompt=True,
                    return_tensors="pt",
                    return_dict=True,
                ),
                max_new_tokens=TOKENS,
                do_sample=False,
            )[0].tolist()
            for prompt in PROMPTS
        ]


def test_greedy_tokens_of_one_prompt_are_those_of_transformers(decoder, expected):
    for prompt, text in zip(PROMPTS[:3], expected, strict=False):
        result = decoder.generate(prompt, max_new_tokens=TOKENS)
        assert [*result.prompt_tokens, *result.tokens] == text
        assert result.stats.tau > 1.3, "next to nothing was accepted, so little was tested"


def test_greedy_tokens_of_a_batch_are_those_of_transformers(decoder, expected):
    results = decoder.generate(PROMPTS, max_new_tokens=TOKENS)
    assert [[*r.prompt_tokens, *r.tokens] for r in results] == expected
