"""What the whole decoder says, over its real cache, masks, head and tree, by enumeration."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from eagle import SamplingParams
from eagle.testing import assert_decoder_lossless
from eagle.testing.exact_decoder import decoder_distribution, target_distribution
from eagle.testing.lanes import LaneDraws
from eagle.testing.oracle import EnumeratingDraws
from tests.exact.tiny import DEVICES, PROMPTS, exact_decoder

SAMPLED = SamplingParams(temperature=1.0)
# In binary, so that they are the same in float32 and float64.
FILTERED = SamplingParams(temperature=0.5, top_k=3, top_p=0.875, min_p=0.0625)
# Float64 throughout: what is left is the order of sums, on probabilities of 1 and less.
TOLERANCE = 1e-12
FORK = [[0], [1], [1, 0]]
TREES = {
    "chain": {"name": "chain", "depth": 2},
    "chain, top-k": {"name": "chain", "depth": 4, "sampling": "top-k"},
    "static": {"name": "static", "tree": FORK},
    "static, top-k": {"name": "static", "branching": [2, 2, 1], "sampling": "top-k"},
    "reference, top-k": {"name": "static", "tree": "reference-25", "sampling": "top-k"},
    "dynamic": {"name": "dynamic", "nodes": 5, "depth": 3, "top_k": 3},
    "none": {"name": "none"},
}


@pytest.mark.parametrize("params", [SAMPLED, FILTERED], ids=["sampled", "filtered"])
@pytest.mark.parametrize("tree", TREES)
def test_first_four_tokens_have_the_targets_joint_distribution(tree, params):
    decoder = exact_decoder(**TREES[tree])
    assert_decoder_lossless(decoder, PROMPTS, params, tolerance=TOLERANCE)


def test_first_tokens_of_a_vocabulary_of_five_have_the_targets_joint_distribution():
    decoder = exact_decoder(5, name="chain", depth=1)
    assert_decoder_lossless(decoder, [*PROMPTS, [4]], SAMPLED, tolerance=TOLERANCE)


@pytest.mark.parametrize(
    "tree",
    [{"name": "static", "tree": FORK, "sampling": "top-k"}, {"name": "chain", "depth": 1}],
    ids=str,
)
@pytest.mark.parametrize("slots", [1, 2])
def test_one_slot_and_two_have_the_targets_joint_distribution(tree, slots):
    decoder = exact_decoder(**tree)
    assert_decoder_lossless(
        decoder, PROMPTS[:slots], SAMPLED, tokens=3, slots=slots, tolerance=TOLERANCE
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tree", ["chain", "static, top-k"])
def test_first_four_tokens_have_the_targets_joint_distribution_on_a_gpu(tree):
    decoder = exact_decoder(device="cuda", **TREES[tree])
    assert_decoder_lossless(decoder, PROMPTS, SAMPLED, tolerance=TOLERANCE)


def test_at_temperature_zero_the_one_text_is_the_targets():
    decoder = exact_decoder(**TREES["static, top-k"])
    assert_decoder_lossless(decoder, PROMPTS, SamplingParams(), slots=2, tolerance=0)


# --- processors -----------------------------------------------------------------------------------

PROCESSORS = {
    "repetition": lambda: [RepetitionPenaltyLogitsProcessor(1.5)],
    "no repeated bigram": lambda: [NoRepeatNGramLogitsProcessor(2)],
    "both": lambda: [RepetitionPenaltyLogitsProcessor(1.5), NoRepeatNGramLogitsProcessor(3)],
    "minimum": lambda: [MinNewTokensLengthLogitsProcessor(3, 2, 1, device="cpu")],
}


@pytest.mark.parametrize("params", [FILTERED, SamplingParams()], ids=["filtered", "greedy"])
@pytest.mark.parametrize("tree", ["chain", "static, top-k", "dynamic"])
@pytest.mark.parametrize("processors", PROCESSORS)
def test_processors_define_the_joint_distribution(processors, tree, params):
    decoder = exact_decoder(**TREES[tree])
    assert_decoder_lossless(
        decoder,
        # The minimum counts from the end of a prompt of three tokens.
        PROMPTS[:1] if processors == "minimum" else PROMPTS,
        params,
        processors=PROCESSORS[processors](),
        tokens=3,
        slots=64,
        tolerance=TOLERANCE,
    )


# --- the same through the public call -------------------------------------------------------------


def generated_distribution(decoder, prompts, tokens, lanes, **options):
    """Return, for each prompt, the distribution of what `generate` returns; all lanes a batch."""
    waiting = [[torch.full((64,), -1)] for _ in prompts]
    found = [defaultdict(float) for _ in prompts]
    while any(waiting):
        chosen = [index for index, own in enumerate(waiting) for _ in own[:lanes]]
        scripts = torch.stack([waiting[index].pop(0) for index in chosen])
        oracle, unread = EnumeratingDraws(scripts), list(range(len(scripts)))

        def draws(uniforms, oracle=oracle, unread=unread):
            count = len(uniforms)  # the last lanes may have ended
            if unread:  # prompts are read, some in one pass: their slots draw their first tokens
                own = torch.tensor([unread.pop(0) for _ in uniforms])
                return LaneDraws(oracle, own, torch.ones(len(own), dtype=torch.bool))
            active = decoder.loop.seats.slots.active[:count].clone()
            return LaneDraws(oracle, torch.arange(count), active)

        decoder._cycle.draws = draws
        results = decoder.generate(
            [prompts[index] for index in chosen],
            SamplingParams(max_new_tokens=tokens, ignore_eos=True, **options),
        )
        for index, result, chance in zip(chosen, results, oracle.probability.tolist(), strict=True):
            found[index][result.tokens] += chance
        for origins, forks in zip(oracle.origins, oracle.forks, strict=True):
            for lane, script in zip(origins.tolist(), forks, strict=True):
                waiting[chosen[lane]].append(script)
    return found


@pytest.mark.parametrize(
    ("vocab", "tokens", "tree"),
    [
        (4, 4, {"name": "chain", "depth": 1, "sampling": "top-k"}),
        (4, 3, {"name": "static", "tree": FORK, "sampling": "top-k"}),
        (3, 3, {"name": "chain", "depth": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("lanes", [1, 16])
def test_generate_returns_the_targets_joint_distribution(vocab, tokens, tree, lanes):
    decoder = exact_decoder(vocab, **tree)
    prompts = [[1, 2], [0, 2, 1, 1]] if lanes > 1 else [[1, 2]]
    found = generated_distribution(decoder, prompts, tokens, lanes, temperature=0.5)
    for prompt, own in zip(prompts, found, strict=True):
        wanted = target_distribution(
            decoder, prompt, SamplingParams(temperature=0.5), tokens=tokens
        )
        assert own == pytest.approx(wanted, abs=TOLERANCE)


def test_the_enumeration_is_of_distributions():
    decoder = exact_decoder(**TREES["chain"])
    found = decoder_distribution(decoder, PROMPTS, SAMPLED, tokens=2)
    for prompt, own in zip(PROMPTS, found, strict=True):
        assert len(own) == 16
        assert sum(own.values()) == pytest.approx(1, abs=TOLERANCE)
        assert own == pytest.approx(target_distribution(decoder, prompt, SAMPLED, tokens=2))
    assert found[0] != pytest.approx(found[1], abs=0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_a_decoder_can_be_used_after_its_enumeration(device):
    decoder = exact_decoder(device=device, **TREES["chain"])
    before = decoder.generate(PROMPTS, temperature=1.0, seed=0, max_new_tokens=9, ignore_eos=True)
    assert_decoder_lossless(decoder, PROMPTS, SAMPLED, tokens=2)
    after = decoder.generate(PROMPTS, temperature=1.0, seed=0, max_new_tokens=9, ignore_eos=True)
    assert [result.tokens for result in before] == [result.tokens for result in after]
