"""Grammars: what may follow, what is refused, and that the masked distribution is exactly kept."""

import json
import re
from contextlib import suppress
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import Decoder, SamplingParams
from eagle.errors import RequestError
from eagle.structured import grammar, json_object, json_schema, regex
from eagle.target import Target
from eagle.testing import assert_decoder_lossless
from tests.exact.tiny import exact_decoder
from tests.structured.letters import letters

pytestmark = pytest.mark.skipif(find_spec("llguidance") is None, reason="no llguidance")

EOS = 2
PROMPT = [5, 6, 7]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 23]}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TREES = [{"name": "static", "branching": [3, 2, 1]}, {"name": "dynamic", "nodes": 20, "depth": 5}]


@pytest.fixture(scope="module")
def tokenizer():
    return letters(64)


@pytest.fixture(scope="module")
def target(pair, tokenizer):
    """The tiny target with a tokenizer of letters, and an end token."""
    model = pair[0].model
    before = model.config.eos_token_id, model.generation_config.eos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = EOS
    yield Target(model, tokenizer, "tiny")
    model.config.eos_token_id, model.generation_config.eos_token_id = before


def allowed(follows, answer, vocab=64):
    ids = torch.tensor([[*PROMPT, *answer]])
    return set(follows(ids, torch.zeros(1, vocab))[0].isfinite().nonzero()[:, 0].tolist())


def test_only_what_leads_to_an_answer_may_follow_and_only_an_end_behind_it(tokenizer):
    follows = regex(tokenizer, "ab|acd?").for_request(PROMPT, {EOS, 1})
    a, b, c, d = tokenizer.convert_tokens_to_ids(list("abcd"))
    assert allowed(follows, []) == {a}
    assert allowed(follows, [a]) == {b, c}
    assert allowed(follows, [a, b]) == {EOS, 1}
    assert allowed(follows, [a, c]) == {d, EOS, 1}
    assert allowed(follows, [a, c, d]) == {EOS, 1}
    assert allowed(follows, [a, b, 1]) == allowed(follows, [a, b, EOS, EOS]) == {EOS, 1}
    assert allowed(follows, [a], vocab=80) == {b, c}, "ids of no token are never allowed"


@given(st.lists(st.integers(0, 200), min_size=2, max_size=12))
@settings(max_examples=20)
def test_it_depends_on_the_text_alone_whatever_was_asked_before(walks):
    made = json_schema(letters(64), SCHEMA)
    follows, texts = made.for_request(PROMPT, {EOS}), [[]]
    for number in walks:
        text = texts[number % len(texts)]
        found = allowed(follows, text)
        assert found == allowed(made.for_request(PROMPT, {EOS}), text)
        texts.append([*text, sorted(found)[number % len(found)]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", TREES, ids=["static", "dynamic"])
def test_answers_are_those_of_plain_decoding_and_valid(tree, temperature, target, tokenizer, spec):
    plain = {"head": {"name": "none"}, "tree": {"name": "none"}}
    fast = Decoder.from_spec(spec(tree=tree, runtime={"max_batch": 4}), target=target)
    slow = Decoder.from_spec(spec(**plain), target=target)
    own = json_schema(tokenizer, SCHEMA)
    for number in range(3):
        prompts = [[5 + number, 6, 7], [9, number + 10]]
        params = SamplingParams(max_new_tokens=60, temperature=temperature, seed=number)
        answers = fast.generate(prompts, params, processors=[[own], None])
        for answer in answers[:1]:
            assert answer.finish_reason == "stop"
            found = json.loads(answer.text)
            assert found["a"] in (1, 23)
            assert len(found["b"]) <= 3
        if not temperature:
            others = slow.generate(prompts, params, processors=[[own], None])
            assert [one.tokens for one in answers] == [one.tokens for one in others]


@pytest.mark.parametrize("tree", ["chain", "static"])
def test_the_masked_distribution_is_exactly_kept(tree):
    trees = {
        "chain": {"name": "chain", "depth": 2},
        "static": {"name": "static", "branching": [2, 2, 1], "sampling": "top-k"},
    }
    decoder = exact_decoder(6, **trees[tree])
    vocab = 6
    follows = regex(letters(vocab), "(01|0|1[0-2]?)*").for_request([1, 2, 3], {2})

    def own(ids, scores):
        for text, row in zip(ids[:, None], scores, strict=True):
            # The reference asks about texts of probability zero, too.
            with suppress(RequestError):
                row.copy_(follows(text, row[None])[0])
        return scores

    assert_decoder_lossless(
        decoder,
        [[1, 2, 3]],
        SamplingParams(temperature=1.0),
        processors=[own],
        tokens=3,
        slots=64,
        tolerance=1e-12,
    )


def test_a_grammar_and_any_json_object_can_be_followed(tokenizer, target, spec):
    decoder = Decoder.from_spec(spec(), target=target)
    turns = grammar(tokenizer, 'start: "x" (LETTER ",")~2 "z"\nLETTER: /[ab]/')
    found = decoder.generate([5, 6], processors=[turns], temperature=1.0, seed=1)
    assert re.fullmatch("x[ab],[ab],z", found.text)
    begun = decoder.generate(
        [5, 6], processors=[json_object(tokenizer)], max_new_tokens=9, temperature=1.0, seed=1
    )
    assert begun.text.startswith("{")


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (json_schema, {"type": "nope"}, "the JSON schema cannot be followed: .*nope"),
        (json_schema, {"not": {"type": "string"}}, "the JSON schema cannot be followed"),
        (json_schema, "{", "the JSON schema is no JSON"),
        (json_schema, {"a": {1}}, "cannot be written as JSON"),
        (json_schema, [1], "a JSON schema is an object, true or false"),
        (regex, "(((", "the regular expression cannot be followed: .*unclosed group"),
        (regex, "", "a regular expression is a text"),
        (regex, 3, "a regular expression is a text"),
        (regex, "\ud800", "the regular expression cannot be read: .*surrogates"),
        (regex, r"[^\s\S]", "expression cannot be followed: no token of this target's begins"),
        (json_schema, {"enum": ["\ud800"]}, "the JSON schema cannot be read: .*hex escape"),
        (json_schema, {"$ref": "#"}, "the JSON schema cannot be followed: no token .* begins"),
        (grammar, 'start: "\ud800"', "the grammar cannot be read: .*surrogates"),
        (grammar, " ", "the grammar cannot be followed"),
        (grammar, "start: foo", "the grammar cannot be followed: .*unknown name"),
    ],
)
def test_what_is_no_grammar_is_refused_in_a_sentence(make, given, said, tokenizer):
    with pytest.raises(RequestError, match=said) as caught:
        make(tokenizer, given)
    assert "\n" not in str(caught.value)


def test_a_lone_space_is_a_regular_expression(tokenizer):
    follows = regex(tokenizer, " ").for_request(PROMPT, {EOS})
    assert [tokenizer.decode(token) for token in allowed(follows, [])] == [" "]


def test_an_answer_that_cannot_go_on_is_told_without_what_the_matcher_tells_its_authors(tokenizer):
    follows = regex(tokenizer, "a\u65e5").for_request(PROMPT, {EOS})
    with pytest.raises(RequestError, match="can no longer be followed") as caught:
        allowed(follows, [tokenizer.convert_tokens_to_ids("a")])
    assert "<state>" not in str(caught.value)


@pytest.mark.parametrize("tokenizer", [None, SimpleNamespace(eos_token_id=2)], ids=str)
def test_a_tokenizer_that_cannot_be_read_is_refused(tokenizer):
    with pytest.raises(RequestError, match="fast tokenizer"):
        regex(tokenizer, "a")


def test_a_grammar_by_itself_does_not_guess_where_the_prompt_ends(tokenizer):
    with pytest.raises(RequestError, match="for_request"):
        regex(tokenizer, "a")(torch.tensor([[1]]), torch.zeros(1, 64))
