"""Rules of others are enumerated: right ones pass, and each fault is named in a small world."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from audit import faults
from audit.transformers_rule import transformers_rule
from audit.vllm_rule import vllm_rule, vllm_rule_without_drafts

from eagle.testing import Chain, accepts_the_impossible, audit, output_distribution

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="vLLM is not installed, or its kernels are not interpreted",
)


@pytest.mark.parametrize("rule", [faults.speculative, faults.block_verification])
def test_a_right_rule_passes(rule):
    audit(rule, vocab=2, worlds=2)
    audit(rule, worlds=[THREE])


def test_transformers_rule_is_lossless():
    audit(transformers_rule, vocab=2, worlds=2)


def test_transformers_rule_accepts_what_the_target_never_says_at_a_uniform_of_zero():
    assert accepts_the_impossible(transformers_rule)
    assert not accepts_the_impossible(faults.speculative)


THREE = Chain(((1, 1, 1), (1, 2, 2), (1, 1, 1)), ((1, 0, 0), (0, 1, 2)))


@needs_vllm
def test_vllm_rule_is_lossless():
    audit(vllm_rule, vocab=2, worlds=4)
    audit(vllm_rule_without_drafts, vocab=2, worlds=4, fixed=True)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (faults.softmax_for_argmax, {"fixed": True}),
        (faults.wrong_logits_row, {}),
        (faults.coarse_draft, {}),
        (faults.token_equality, {}),
        # Of two tokens, either residual has one at most: it takes three, and a scale below 1.
        (faults.block_with_the_residual_of_a_token, {"worlds": [THREE]}),
    ],
)
def test_a_fault_that_was_shipped_is_caught_and_its_world_is_named(rule, options):
    with pytest.raises(AssertionError, match=rf"{rule.__name__} is not lossless: with target"):
        audit(rule, **options)


def test_a_race_of_exponentials_has_the_weights_of_its_tokens():
    def race(chain):
        noise = torch.empty(1, 3).exponential_()
        return [int((chain.target_probs[0] / noise).argmax())]

    found = output_distribution(race, Chain(((1, 2, 0), (1, 1, 1)), ((1, 0, 0),)))
    assert found == pytest.approx({(0,): 1 / 3, (1,): 2 / 3}, abs=1e-6)


def test_chance_that_is_not_understood_is_refused():
    def gaussian(chain):
        return [int(torch.randn(()) > 0)]

    with pytest.raises(AssertionError, match=r"draws by torch\.randn, which is not understood"):
        audit(gaussian)
