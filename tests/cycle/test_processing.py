"""Logits processors as a user gives them; what they do to distributions is enumerated in exact/."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from eagle import Decoder, SamplingParams
from eagle.cycle.processing import Bound, Processing, processors_of_each
from eagle.errors import NumericalError, RequestError
from eagle.plugin.tree import TokenTree, ancestor_mask
from tests.target.test_target import reference

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18, 20, 10, 12], [40, 43], [9, 11], list(range(3, 40))]
OPTIONS = {
    "repetition": ({"repetition_penalty": 1.3}, [RepetitionPenaltyLogitsProcessor(1.3)]),
    "ngram": ({"no_repeat_ngram_size": 3}, [NoRepeatNGramLogitsProcessor(3)]),
    "both": (
        {"repetition_penalty": 1.1, "no_repeat_ngram_size": 2},
        [RepetitionPenaltyLogitsProcessor(1.1), NoRepeatNGramLogitsProcessor(2)],
    ),
}


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(), target=pair[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_greedy_tokens_of_a_batch_are_those_of_transformers(name, decoder):
    theirs, ours = OPTIONS[name]
    results = decoder.generate(PROMPTS, max_new_tokens=40, ignore_eos=True, processors=ours)
    plain = decoder.generate(PROMPTS, max_new_tokens=40, ignore_eos=True)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.tokens == reference(decoder.target, prompt, 40, **theirs)
    assert [r.tokens for r in results] != [r.tokens for r in plain], "they made no difference"
    assert max(max(r.stats.accepted_per_cycle) for r in results) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_prompt_has_its_own_processors(decoder, temperature):
    own = [
        LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)]),
        None,
        [NoRepeatNGramLogitsProcessor(2)],
        [],
        (RepetitionPenaltyLogitsProcessor(0.8), NoRepeatNGramLogitsProcessor(4)),
    ]
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_new_tokens=20, ignore_eos=True)
        for seed in range(5)
    ]
    together = decoder.generate(PROMPTS, params, processors=own)
    for index, result in enumerate(together):
        alone = decoder.generate(PROMPTS[index], params[index], processors=own[index])
        assert result.tokens == alone.tokens
    events = list(decoder.stream(PROMPTS, params, processors=own))
    streamed = sorted((e.index, e.result.tokens) for e in events if e.result)
    assert [tokens for _, tokens in streamed] == [result.tokens for result in together]


def test_a_slot_that_is_used_again_has_the_processors_of_its_new_request(spec, pair):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 2}), target=pair[0])
    own = [[NoRepeatNGramLogitsProcessor(size)] if size else None for size in (2, 0, 0, 3, 4)]
    params = [SamplingParams(max_new_tokens=5 + 7 * i, ignore_eos=True) for i in range(5)]
    together = decoder.generate(PROMPTS, params, processors=own)
    for index, result in enumerate(together):
        alone = decoder.generate(PROMPTS[index], params[index], processors=own[index])
        assert result.tokens == alone.tokens


def test_a_processor_sees_every_prefix_of_the_text(decoder):
    asked = set()

    def note(ids, scores):
        assert ids.dtype == torch.int64
        assert scores.dtype == torch.float32
        assert ids.shape[0] == scores.shape[0]
        asked.update(map(tuple, ids.tolist()))
        return scores

    result = decoder.generate(
        PROMPTS[1], max_new_tokens=30, temperature=1.0, seed=0, ignore_eos=True, processors=[note]
    )
    text = (*PROMPTS[1], *result.tokens)
    for length in range(len(PROMPTS[1]), len(text)):
        assert text[:length] in asked
    assert all(prefix[: len(PROMPTS[1])] == tuple(PROMPTS[1]) for prefix in asked)
    plain = decoder.generate(
        PROMPTS[1], max_new_tokens=30, temperature=1.0, seed=0, ignore_eos=True
    )
    assert result.tokens == plain.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_processor_is_never_asked_about_what_it_ruled_out(decoder, temperature):
    def allowed(_, ids):
        """Each token is followed by one to three more; anything else is an error here."""
        steps = ids.diff()[len(PROMPTS[0]) - 1 :]
        assert ((steps >= 1) & (steps <= 3)).all(), "asked about an impossible prefix"
        return list(range(int(ids[-1]) + 1, int(ids[-1]) + 4))

    result = decoder.generate(
        PROMPTS[0],
        max_new_tokens=16,
        temperature=temperature,
        ignore_eos=True,
        processors=[PrefixConstrainedLogitsProcessor(allowed, num_beams=1)],
    )
    assert len(result.tokens) == 16
    assert max(result.stats.accepted_per_cycle) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_processors_that_leave_no_choice_are_an_error(decoder, temperature, after, value):
    def forbid(ids, scores):
        end = ids.shape[1] >= len(PROMPTS[0]) + after
        return torch.full_like(scores, value) if end else scores

    with pytest.raises(NumericalError, match=r"tokens of prompt 1 its logits processors give no"):
        decoder.generate(PROMPTS[0], max_new_tokens=9, temperature=temperature, processors=[forbid])


def test_a_processor_may_change_the_scores_in_place(decoder):
    def forbid(ids, scores):
        scores[:, 8] = -torch.inf
        return scores

    result = decoder.generate(
        PROMPTS, max_new_tokens=30, ignore_eos=True, temperature=1.0, processors=[forbid]
    )
    assert all(8 not in r.tokens for r in result)


def test_without_processors_nothing_is_processed(decoder, monkeypatch):
    def never(*args):
        raise AssertionError("processed")

    monkeypatch.setattr("eagle.cycle.cycle.Processing.at_nodes", never)
    monkeypatch.setattr("eagle.cycle.cycle.Processing.after_text", never)
    decoder.generate(PROMPTS, max_new_tokens=5, processors=[])
    decoder.generate(PROMPTS, max_new_tokens=5, processors=[None] * 5)
    with pytest.raises(AssertionError, match="processed"):
        decoder.generate(PROMPTS, max_new_tokens=5, processors=[[]] * 4 + [[never]])


def test_half_precision_is_processed_in_float32_and_double_in_double():
    parents = torch.tensor([[-1, 0]])
    tree = TokenTree(parents + 1, parents, parents + 1, parents, ancestor_mask(parents, 1))
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        logits = torch.ones(1, 2, 4, dtype=dtype)
        processing = Processing({0: ([1, 0], [lambda ids, scores: (scores / 3).float()])})
        scores = processing.at_nodes(logits, tree)
        assert scores.dtype == expected
        assert (logits == 1).all(), "the target's logits were changed"
        torch.testing.assert_close(scores, torch.full_like(scores, 1 / 3))


@pytest.mark.parametrize(
    ("processors", "message"),
    [
        ([[], []], "2 sequences of logits processors were given for 3 prompts"),
        ([None], "1 sequences"),
        ([3], r"\[3\] is no list of logits processors.*\(input_ids, scores\)"),
        ([[], ["x"], None], r"\['x'\] is no list of logits processors"),
        ([lambda i, s: s, [], None], "lambda.* is no list of logits processors"),
        (lambda i, s: s, "given as a list"),
    ],
)
def test_refuses_what_are_no_processors(processors, message):
    with pytest.raises(RequestError, match=message):
        processors_of_each(processors, 3)


def test_a_processor_that_raises_is_named_and_costs_no_finished_result(decoder):
    def careless(ids, scores):
        raise ValueError("no such word")

    params = [SamplingParams(max_new_tokens=count) for count in (1, 9)]
    with pytest.raises(RequestError, match="careless raised ValueError: no such word") as caught:
        decoder.generate(PROMPTS[:2], params, processors=[None, [careless]])
    assert isinstance(caught.value.__cause__, ValueError)
    assert list(caught.value.results) == [0]


@pytest.mark.parametrize("wrong", [None, torch.zeros(1)])
def test_a_processor_that_returns_something_else_is_named(decoder, wrong):
    def careless(ids, scores):
        return wrong

    with pytest.raises(RequestError, match=r"careless returned (NoneType|\[1\]).*\[1, 64\]"):
        decoder.generate(PROMPTS[0], processors=[careless])


def within(allowed, ids, prompt):
    """Whether every token of an answer is one that its constraint allows."""
    return all(token in allowed for token in ids) and len(ids) > len(prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_prompt_keeps_to_its_own_constraint(decoder, temperature):
    sets = [list(range(3, 20)), list(range(20, 40)), list(range(40, 64))]

    def allowed(batch_id, ids):
        return sets[batch_id]

    shared = [PrefixConstrainedLogitsProcessor(allowed, num_beams=1)]
    options = {"max_new_tokens": 20, "temperature": temperature, "ignore_eos": True}
    results = decoder.generate(PROMPTS[:3], processors=shared, **options)
    for own, prompt, result in zip(sets, PROMPTS, results, strict=False):
        assert within(own, result.tokens, prompt)
    # In a list of its own, as in a call of its own, a prompt is the first of its batch.
    own = [[PrefixConstrainedLogitsProcessor(lambda i, _, s=s: [s][i], 1)] for s in sets]
    results = decoder.generate(PROMPTS[:3], processors=own, **options)
    for mine, prompt, result in zip(sets, PROMPTS, results, strict=False):
        assert within(mine, result.tokens, prompt)
    alone = decoder.generate(PROMPTS[0], processors=shared, **options)
    assert within(sets[0], alone.tokens, PROMPTS[0])


def test_a_processor_is_asked_about_one_text_at_a_time(decoder):
    shapes = set()

    class Rows:
        def __call__(self, ids, scores):
            shapes.add((ids.shape[0], scores.shape[0]))
            return scores

    decoder.generate(PROMPTS, max_new_tokens=12, ignore_eos=True, processors=[Rows()])
    assert shapes == {(1, 1)}


@pytest.mark.parametrize(
    "processor",
    [
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(5),
        transformers.TopPLogitsWarper(0.8),
        transformers.MinPLogitsWarper(0.1),
        transformers.TypicalLogitsWarper(0.8),
        transformers.EpsilonLogitsWarper(0.01),
        transformers.EtaLogitsWarper(0.01),
        transformers.LogitNormalization(),
        transformers.InfNanRemoveLogitsProcessor(),
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
        transformers.NoRepeatNGramLogitsProcessor(2),
        transformers.NoBadWordsLogitsProcessor([[4], [5, 6]]),
        transformers.SequenceBiasLogitsProcessor([[[4], 2.0], [[5, 6], -3.0]]),
        transformers.SuppressTokensLogitsProcessor([4, 5]),
        transformers.SuppressTokensAtBeginLogitsProcessor([4, 5], 4),
        transformers.MinLengthLogitsProcessor(6, 2),
        transformers.MinNewTokensLengthLogitsProcessor(3, 4, 2),
        transformers.ForcedEOSTokenLogitsProcessor(5, 2),
        transformers.ForcedBOSTokenLogitsProcessor(2),
        transformers.ExponentialDecayLengthPenalty((1, 1.5), 2, 3),
        transformers.WatermarkLogitsProcessor(64, "cpu"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_processors_that_are_asked_about_many_texts_at_once_say_the_same_of_each(processor):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 64, generator=generator) * 3
    bound = Bound(processor)
    assert bound._by_rows
    for length in (1, 3, 4, 9):
        ids = torch.randint(3, 8, (12, length), generator=generator)
        each = [processor(ids[i : i + 1], scores[i : i + 1].clone()) for i in range(12)]
        assert torch.equal(bound(ids, scores.clone()), torch.cat(each))


class Counts:
    def __init__(self, **state):
        self.__dict__ |= state

    def __call__(self, ids, scores):
        self.calls += 1
        return scores


class Remembers(Counts):
    def __call__(self, ids, scores):
        self.past["ids"] = [*self.past.get("ids", []), ids.shape[1]]
        return scores


class Draws(Counts):
    def __call__(self, ids, scores):
        return scores + torch.rand(scores.shape, generator=self.generator)


class InPlace(Counts):
    def __call__(self, ids, scores):
        self.seen[ids[:, -1]] += 1
        return scores


class Settles(Counts):
    def __call__(self, ids, scores):
        if self.bias is None:
            self.bias = torch.zeros_like(scores)
            self.table = {"sizes": list(scores.shape)}
        self.count = ids.shape[0]
        return scores + self.bias


STATEFUL = {
    "calls": lambda: Counts(calls=0),
    "past": lambda: Remembers(past={}),
    "generator": lambda: Draws(generator=torch.Generator()),
    "seen": lambda: InPlace(seen=torch.zeros(64)),
}


@pytest.mark.parametrize("attribute", STATEFUL)
def test_a_processor_that_keeps_state_is_refused_before_it_misleads(decoder, attribute):
    options = {"max_new_tokens": 8, "ignore_eos": True}
    message = (
        rf"keeps state between calls \(its attribute '{attribute}' changed\).*any_prefix = True"
    )
    with pytest.raises(RequestError, match=message):
        decoder.generate(PROMPTS[0], processors=[STATEFUL[attribute]()], **options)
    declared = STATEFUL[attribute]()
    declared.any_prefix = True
    assert len(decoder.generate(PROMPTS[0], processors=[declared], **options).tokens) == 8


def test_guidance_with_a_cache_of_its_own_is_refused(decoder):
    class Unconditional:
        config = None

        def __call__(self, ids, **options):
            return SimpleNamespace(
                logits=torch.zeros(1, ids.shape[1], 64), past_key_values=object(),
                get=lambda name, default=None: None,
            )  # fmt: skip

    guided = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, Unconditional())
    with pytest.raises(RequestError, match="keeps state between calls"):
        decoder.generate(PROMPTS[0], max_new_tokens=8, processors=[guided])


def test_a_processor_may_prepare_itself_in_its_first_call(decoder):
    settling = Settles(bias=None, count=0, limit=float("nan"), words=("a", "b"))
    plain = decoder.generate(PROMPTS[0], max_new_tokens=8, ignore_eos=True)
    for _ in range(2):
        found = decoder.generate(
            PROMPTS[0], max_new_tokens=8, ignore_eos=True, processors=[settling]
        )
        assert found.tokens == plain.tokens


def test_a_constraint_made_for_beams_is_refused(decoder):
    constraint = PrefixConstrainedLogitsProcessor(lambda i, ids: [4], num_beams=2)
    with pytest.raises(RequestError, match=r"made for 2 beams.*num_beams=1"):
        decoder.generate(PROMPTS[0], processors=[constraint])
