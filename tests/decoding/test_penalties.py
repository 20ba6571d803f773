"""OpenAI's penalties and logit bias, against decoding that takes one token after the other."""

import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.decoding.penalties import Penalties
from eagle.errors import RequestError
from eagle.testing import assert_decoder_lossless
from tests.exact.tiny import exact_decoder

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43]]
LOUD = {9: 60.0, 12: 59.0, 30: 58.0}  # far more than the tiny model's own mind
PARAMS = {
    "frequency": {"frequency_penalty": 1.25, "logit_bias": LOUD},
    "presence": {"presence_penalty": 2.0, "logit_bias": LOUD},
    "reward": {"frequency_penalty": -0.5, "presence_penalty": -1.0, "logit_bias": {9: 14.0}},
    "bias": {"logit_bias": {7: 4.0, 12: -100.0, 40: 2.5}},
    "all": {"frequency_penalty": 0.5, "presence_penalty": 0.75, "logit_bias": LOUD},
}


def reference(target, prompt, count, frequency_penalty=0.0, presence_penalty=0.0, logit_bias=()):
    """Decode greedily as OpenAI describes the parameters, a token at a time."""
    answer = []
    with target.stock() as model, torch.inference_mode():
        for _ in range(count):
            scores = model(torch.tensor([[*prompt, *answer]])).logits[0, -1].tolist()
            for token in set(answer):
                scores[token] -= answer.count(token) * frequency_penalty + presence_penalty
            for token, bias in dict(logit_bias).items():
                scores[token] += bias
            answer.append(max(range(len(scores)), key=scores.__getitem__))
    return tuple(answer)


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(runtime={"max_batch": 3}), target=pair[0])


@pytest.mark.parametrize("which", PARAMS)
def test_greedy_answers_are_those_of_one_token_after_the_other(which, decoder, pair):
    own = PARAMS[which]
    answers = decoder.generate(PROMPTS, max_new_tokens=24, ignore_eos=True, **own)
    found = [answer.tokens for answer in answers]
    assert found == [reference(pair[0], prompt, 24, **own) for prompt in PROMPTS]
    without = {"logit_bias": own["logit_bias"]} if len(own) > 1 else {}
    if which not in ("presence", "reward"):  # which change no greedy text here
        assert found != [reference(pair[0], prompt, 24, **without) for prompt in PROMPTS]


def test_scores_are_changed_by_openais_formula_and_the_prompt_costs_nothing():
    own = SamplingParams(frequency_penalty=0.5, presence_penalty=1.5, logit_bias={4: 2.0, 1: -3.0})
    ids = torch.tensor([[1, 1, 2, 3, 3, 4], [1, 1, 2, 0, 3, 0]])
    scores = Penalties(2, own)(ids, torch.zeros(2, 6))
    assert scores.tolist() == [[0, -3, -2, -2.5, 0, 0], [-2.5, -3, -2, -2, 2, 0]]
    assert Penalties(6, own)(ids, torch.zeros(2, 6)).tolist() == [[0, -3, 0, 0, 2, 0]] * 2


def test_each_request_of_a_batch_has_its_own(decoder):
    each = [
        SamplingParams(max_new_tokens=20, ignore_eos=True, **PARAMS[which])
        for which in ("frequency", "bias")
    ] + [SamplingParams(max_new_tokens=20, ignore_eos=True)]
    together = decoder.generate(PROMPTS, each)
    for prompt, own, answer in zip(PROMPTS, each, together, strict=True):
        assert answer.tokens == decoder.generate(prompt, own).tokens


def test_sampled_answers_have_exactly_the_penalised_distribution():
    own = SamplingParams(
        frequency_penalty=0.5, presence_penalty=1.0, logit_bias={1: 1.0}, temperature=1.0
    )
    assert_decoder_lossless(
        exact_decoder(name="static", branching=[2, 2, 1], sampling="top-k"),
        [[1, 2, 3]],
        SamplingParams(temperature=1.0),
        processors=[Penalties(3, own)],
        tokens=3,
        slots=64,
        tolerance=1e-12,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"logit_bias": {64: 1.0}}, "logit_bias: token id 64 .* 0 to 63"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {3: 101}}, "logit_bias"),
        ({"logit_bias": 3}, "logit_bias"),
    ],
)
def test_what_they_cannot_be_is_refused(given, said, decoder):
    with pytest.raises(RequestError, match=said):
        decoder.generate(PROMPTS[0], max_new_tokens=2, **given)
