"""`eagle verify` measured: right decoders pass, wrong ones do not, and ties are told from both."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from eagle import Decoder
from eagle.bench import significance
from eagle.bench.identity import Evidence, agreement, evidence, first_difference, strays
from eagle.bench.passes import cached_passes, full_pass, stock_answers
from eagle.bench.significance import Draws, examine
from eagle.bench.verify import verify_greedy, verify_sampled
from eagle.cache.store import Step
from eagle.errors import RequestError
from eagle.target.causal_lm import Target
from eagle.testing import tiny_target

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43], [9], [20, 22], list(range(3, 40))]
SAMPLED = {"temperature": 1.0, "samples": 32, "tokens": 8, "alpha": 0.01}


class WrongPositions(Step):
    """Every node but the root one position too late."""

    @classmethod
    def tree(cls, lengths, depths, ancestors, span):
        step = Step.tree(lengths, depths, ancestors, span)
        return dataclasses.replace(step, positions=step.positions + (depths > 0))


class WrongMask(Step):
    """A node sees its siblings, and all that is not deeper than itself."""

    @classmethod
    def tree(cls, lengths, depths, ancestors, span):
        return Step.tree(lengths, depths, ancestors | (depths[:, :, None] >= depths[:, None]), span)


MUTANTS = [WrongPositions, WrongMask]


@pytest.fixture(scope="module")
def half(pair):
    """The pair's target in bfloat16."""
    return Target(copy.deepcopy(pair[0].model).to(torch.bfloat16), None, "half")


@pytest.fixture
def decoder(spec, pair):
    return Decoder.from_spec(spec(), target=pair[0])


@pytest.fixture
def half_decoder(spec, half):
    return Decoder.from_spec(spec(), target=half)


# The target's own passes.


@pytest.mark.parametrize("width", [1, 3, 64])
def test_cached_passes_over_padded_prompts_are_the_full_pass(width, pair):
    answers = torch.randint(
        3, 64, (len(PROMPTS) + 1, 7), generator=torch.Generator().manual_seed(0)
    )
    owner = [*range(len(PROMPTS)), 0]
    pieces = list(cached_passes(pair[0], PROMPTS, owner, answers, width))
    assert [start for start, _ in pieces] == list(range(0, 7, width))
    found = torch.cat([logits for _, logits in pieces], 1)
    for row, prompt in enumerate(owner):
        expected = full_pass(pair[0], PROMPTS[prompt], answers[row].tolist())
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


def test_prompts_of_one_token_leave_nothing_to_read_beforehand(pair):
    ((_, found),) = cached_passes(pair[0], [[9], [11]], [1, 0], torch.tensor([[5, 6], [7, 8]]), 2)
    torch.testing.assert_close(found[0], full_pass(pair[0], [11], [5, 6]), atol=1e-4, rtol=1e-4)


def test_batched_answers_of_transformers_end_where_single_ones_do(pair, monkeypatch):
    target, counts = pair[0], []
    whole = stock_answers(target, PROMPTS, [20] * len(PROMPTS), 1, counts.append)
    assert counts == [1] * len(PROMPTS)
    end = whole[1][6]
    monkeypatch.setattr(target.model.generation_config, "eos_token_id", [end])
    limits = [20, 20, 3, 20, 20, 20]
    for batch in (1, 4, 6):
        found = stock_answers(target, PROMPTS, limits, batch, counts.append)
        for answer, own, limit in zip(found, whole, limits, strict=True):
            stop = own.index(end) + 1 if end in own else limit
            assert answer == own[: min(stop, limit)]


# Identity at temperature 0.


@pytest.mark.parametrize("batch", [1, 4])
def test_a_right_decoder_is_identical_in_float32(batch, spec, pair):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": batch}), target=pair[0])
    seen = []
    found = verify_greedy(
        decoder, PROMPTS, max_new_tokens=40, progress=lambda *done: seen.append(done)
    )
    assert found.holds
    assert found.identical
    assert found.plain.identical == found.hf.identical == found.prompts == len(PROMPTS)
    assert found.choices == ()
    assert found.tau > 2
    assert found.noise < 1e-4
    for what in {what for what, _, _ in seen}:
        steps = [(done, total) for name, done, total in seen if name == what]
        assert steps[0] == (0, len(PROMPTS))
        assert steps[-1] == (len(PROMPTS), len(PROMPTS))


def test_answers_that_end_early_are_compared_to_their_end(decoder, monkeypatch):
    whole = verify_greedy(decoder, PROMPTS, max_new_tokens=40).tokens
    end = decoder.generate(PROMPTS[1], max_new_tokens=40).tokens[9]
    monkeypatch.setattr(decoder.target.model.generation_config, "eos_token_id", [end])
    found = verify_greedy(decoder, PROMPTS, max_new_tokens=40)
    assert found.identical
    assert found.tokens < whole


def test_an_answer_ends_where_the_capacity_does(spec, pair):
    decoder = Decoder.from_spec(spec(runtime={"max_length": 45}), target=pair[0])
    found = verify_greedy(decoder, PROMPTS, max_new_tokens=40)
    assert found.identical
    assert found.tokens == sum(min(40, 45 - len(prompt)) for prompt in PROMPTS)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_decoder_is_no_tie_in_float32(mutant, decoder, monkeypatch):
    monkeypatch.setattr("eagle.cycle.cycle.Step", mutant)
    found = verify_greedy(decoder, PROMPTS, max_new_tokens=40)
    assert not found.holds
    assert found.plain.identical < len(PROMPTS)
    assert found.strays
    assert all(choice.distance > 100 * choice.noise for choice in found.choices)
    assert found.noise < 1e-4, "the target's own passes know nothing of the mistake"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_decoder_is_no_tie_in_bfloat16(mutant, half_decoder, monkeypatch):
    monkeypatch.setattr("eagle.cycle.cycle.Step", mutant)
    found = verify_greedy(half_decoder, PROMPTS, max_new_tokens=40)
    assert not found.holds
    assert len(found.mistakes) > len(found.choices) / 2


def test_divergences_in_bfloat16_are_ties(spec):
    # Untrained, so that its best two tokens are often close; the head knows nothing of it.
    target = tiny_target("llama-gqa", hidden_size=64, intermediate_size=128, dtype=torch.bfloat16)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 16}), target=target)
    prompts = [[start, start + step] for start in range(3, 53, 2) for step in (1, 3)]
    found = verify_greedy(decoder, prompts, max_new_tokens=40)
    assert not found.identical, "otherwise this test shows nothing"
    assert found.holds
    for choice in found.choices:
        assert choice.token != choice.other
        assert choice.distance <= 2 * choice.noise
        assert choice.gap <= choice.distance or not choice.distance
        assert choice.noise < 0.5


def test_differences_are_also_given_in_rounding_steps():
    own = Evidence(
        torch.tensor([[7, 8, 8]]), torch.tensor([[12.0, 11.5, 11.5]]), torch.tensor([0.1])
    )
    # bfloat16 has 8 bits, float32 24: between 8 and 16 they are 2^-4 and 2^-20 apart.
    assert own.choice(0, 0, 8, 7, torch.bfloat16).steps == 8
    assert own.choice(0, 0, 8, 7, torch.float32).steps == 8 * 2**16
    assert not own.choice(0, 0, 8, 7, torch.bfloat16).tie


def judged(target, answers, references):
    return evidence(target, PROMPTS, answers, [[one] for one in references], width=4, batch=4)


def test_a_token_that_was_tampered_with_is_found_wherever_it_stands(pair):
    target = pair[0]
    right = stock_answers(target, PROMPTS, [20] * len(PROMPTS), 1, lambda done: None)
    answers = [list(answer) for answer in right]
    worst = full_pass(target, PROMPTS[2], answers[2])[5].argmin().item()
    answers[2][5] = worst
    own = judged(target, answers, right)
    (divergence,) = agreement(answers, right, own, torch.float32).divergences
    assert (divergence.prompt, divergence.position) == (2, 5)
    assert (divergence.token, divergence.other) == (worst, right[2][5])
    logits = full_pass(target, PROMPTS[2], answers[2])[5]
    assert divergence.distance == pytest.approx(float(logits.max() - logits.min()), rel=1e-5)
    best = logits.topk(2).values
    assert divergence.gap == pytest.approx(float(best[0] - best[1]), rel=1e-4)
    assert not divergence.tie
    assert (2, 5, worst) in {
        (c.prompt, c.position, c.token) for c in strays(answers, own, torch.float32)
    }


def test_an_answer_that_ends_too_soon_or_too_late_is_no_tie(pair):
    right = stock_answers(pair[0], PROMPTS, [10] * len(PROMPTS), 1, lambda done: None)
    answers = [right[0][:4], *right[1:]]
    for given, reference in ((answers, right), (right, answers)):
        found = agreement(given, reference, judged(pair[0], given, reference), torch.float32)
        (choice,) = found.divergences
        assert None in (choice.token, choice.other)
        assert choice.distance is None
        assert not choice.tie


def test_equal_answers_have_no_first_difference():
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1], [1, 3]) == first_difference([1, 3], [1]) == 1


# The distribution above temperature 0.


@pytest.mark.parametrize("tree", [{"name": "chain"}, {"name": "static", "branching": [3, 2, 1]}])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_right_decoder_is_consistent_with_its_target(tree, temperature, spec, pair):
    decoder = Decoder.from_spec(spec(tree=tree, runtime={"max_batch": 64}), target=pair[0])
    found = verify_sampled(decoder, PROMPTS, seed=1, **SAMPLED | {"temperature": temperature})
    assert found.holds
    assert found.tau > 2
    assert found.test.draws == len(PROMPTS) * 32 * 8
    assert sum(rank.expected for rank in found.test.ranks) == pytest.approx(1)
    assert sum(rank.observed for rank in found.test.ranks) == pytest.approx(1)
    assert all(power.share is not None and power.share < 1 for power in found.test.power)


@pytest.mark.parametrize("seed", range(3))
def test_typical_is_caught(seed, spec, pair):
    runtime = {"max_batch": 64}
    decoder = Decoder.from_spec(spec(acceptance="typical", runtime=runtime), target=pair[0])
    assert not decoder.resolved.lossless
    found = verify_sampled(decoder, PROMPTS, seed=seed, **SAMPLED)
    assert not found.holds
    assert found.test.ranks[0].observed > found.test.ranks[0].expected, "it likes likely tokens"


def test_a_wrong_decoder_is_not_consistent(spec, pair, monkeypatch):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 64}), target=pair[0])
    monkeypatch.setattr("eagle.cycle.cycle.Step", WrongMask)
    assert not verify_sampled(decoder, PROMPTS, seed=0, **SAMPLED).holds


def test_bfloat16_is_consistent_too(spec, half):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 64}), target=half)
    assert verify_sampled(decoder, PROMPTS, seed=0, **SAMPLED).holds


def test_the_seed_decides_all_figures(decoder):
    def run(seed):
        return verify_sampled(decoder, PROMPTS[:2], seed=seed, **SAMPLED | {"samples": 4})

    assert run(5) == run(5)
    assert run(5).test.p_ranks != run(6).test.p_ranks


def test_what_cannot_be_tested_is_refused(spec, pair):
    decoder = Decoder.from_spec(spec(runtime={"max_length": 40}), target=pair[0])
    for alpha in (0.0, 0.5):
        with pytest.raises(RequestError, match=r"alpha is .* from 0.001 to 0.2"):
            verify_sampled(decoder, PROMPTS, seed=0, **SAMPLED | {"alpha": alpha})
    with pytest.raises(RequestError, match=r"prompt 6 has 37 tokens, .* holds 40 .* 8 should fit"):
        verify_sampled(decoder, PROMPTS, seed=0, **SAMPLED)


def world(generator, contexts=60, cells=20):
    """Return probabilities ``[U, C]``, likeliest first, and how often each context is met."""
    logits = 3 * torch.randn(contexts, cells, generator=generator, dtype=torch.float64)
    probs = logits.softmax(1).sort(1, descending=True).values
    probs = torch.cat((probs[:, :16], probs[:, 16:].sum(1, keepdim=True)), 1)
    return probs, torch.randint(1, 60, (contexts,), generator=generator)


def counted(probs, sizes, generator):
    return torch.stack(
        [
            torch.multinomial(p, n, replacement=True, generator=generator).bincount(minlength=17)
            for p, n in zip(probs, sizes.tolist(), strict=True)
        ]
    )


def test_the_size_is_as_stated(monkeypatch):
    monkeypatch.setattr(significance, "_NULL", 199)
    monkeypatch.setattr(significance, "_SHARES", ())
    generator = torch.Generator().manual_seed(0)
    found = []
    for seed in range(100):
        probs, sizes = world(generator)
        draws = Draws(counted(probs, sizes, generator), probs, probs)
        found.append(examine(draws, alpha=0.2, seed=seed))
    # Three standard errors of 100 trials; together they are Bonferroni's, at most the size.
    assert sum(one.p_ranks < 0.2 for one in found) == pytest.approx(20, abs=12)
    assert sum(one.p_contexts < 0.2 for one in found) == pytest.approx(20, abs=12)
    assert sum(not one.holds for one in found) <= 32


@pytest.mark.parametrize("departure", [0, 1])
def test_the_power_is_as_stated(departure, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    probs, sizes = world(generator)
    own = examine(Draws(counted(probs, sizes, generator), probs, probs), alpha=0.05, seed=0)
    share = own.power[departure].share
    assert 0 < own.power[departure].distance < share < 1
    monkeypatch.setattr(significance, "_NULL", 399)
    monkeypatch.setattr(significance, "_SHARES", ())
    missed = 0
    for seed in range(40):
        first = torch.zeros(len(probs), dtype=torch.int64)
        taken = torch.multinomial(probs, 1, generator=generator)[:, 0] if departure else first
        toward = torch.nn.functional.one_hot(taken, 17).double()
        drawn = counted((1 - share) * probs + share * toward, sizes, generator)
        missed += examine(Draws(drawn, probs, probs), alpha=0.05, seed=seed).holds
    assert missed <= 10, "a power of 0.9 misses 4 of 40"


def test_what_two_valid_passes_differ_by_is_no_departure(monkeypatch):
    monkeypatch.setattr(significance, "_NULL", 999)
    monkeypatch.setattr(significance, "_SHARES", ())
    generator = torch.Generator().manual_seed(2)
    probs, sizes = world(generator)
    sizes = sizes * 20
    noise = 0.2 * torch.randn(probs.shape, generator=generator, dtype=torch.float64)
    other = (probs.log() + noise).softmax(1)
    drawn = counted(other, sizes, generator)
    assert examine(Draws(drawn, probs, other), alpha=0.01, seed=0).holds
    assert not examine(Draws(drawn, probs, probs), alpha=0.01, seed=0).holds
