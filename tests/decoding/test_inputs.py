"""Prompts and what a chat template is given beside them, before anything is decoded."""

import pytest

from eagle import Decoder
from eagle.decoding.inputs import encode
from eagle.errors import RequestError
from eagle.plugin.sampling import SamplingParams, derived_seed, fresh_seed
from eagle.target.causal_lm import Target
from tests.cli.conftest import word_tokenizer

TEMPLATE = (
    "{% if tools %}w9 {{ tools | length + 20 }} {% endif %}"
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}w8{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    made = word_tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def decoder(spec, pair, tokenizer):
    target = Target(pair[0].model, tokenizer, "words")
    return Decoder.from_spec(spec(), target=target)


def test_a_template_reads_what_it_is_given(decoder):
    def prompt(**given):
        options = {"chat_template_kwargs": given} if given else {}
        return decoder.generate("w5 w6", max_new_tokens=1, **options).prompt_tokens

    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    assert prompt() == (5, 6)
    assert prompt(enable_thinking=True) == (5, 6)
    assert prompt(enable_thinking=False) == (5, 6, 8)
    assert prompt(tools=[tool])[0] == 9
    stream = decoder.stream(
        ["w5", [{"role": "user", "content": "w6"}]],
        max_new_tokens=1,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert {event.result.prompt_tokens for event in stream} == {(5, 8), (6, 8)}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("w5", {"raw": True}, "enable_thinking cannot be used with this prompt: it is given raw"),
        ([5, 6], {}, "enable_thinking cannot be used with a prompt of token ids"),
        ("w5", {"template": {"enable_thinkin": 0}}, "reads no 'enable_thinkin'.*'enable_thinking'"),
        ("w5", {"template": {"tokenize": False}}, "'tokenize' says how the template is applied"),
        ("w5", {"template": {"messages": []}}, "'messages' says how the template is applied"),
        ("w5", {"template": ["tools"]}, "is a mapping of names .*not list"),
        ("w5", {"template": {1: 2}}, "is a mapping of names"),
        ("w5", {"template": {"tools": 3}}, "the chat template"),
    ],
)
def test_refuses_what_a_template_would_not_read(tokenizer, prompt, options, message):
    given = {"raw": False, "template": {"enable_thinking": False}} | options
    with pytest.raises(RequestError, match=message):
        encode(prompt, tokenizer, embeddings=64, **given)


def test_refuses_template_arguments_where_there_is_no_template():
    bare = word_tokenizer()
    bare.chat_template = None
    with pytest.raises(RequestError, match=r"tools cannot be used .*has no chat template"):
        encode("w5", bare, raw=False, embeddings=64, template={"tools": []})
    assert encode("w5", bare, raw=False, embeddings=64, template={}) == [5]


def test_raw_is_yes_or_no(decoder):
    with pytest.raises(RequestError, match="raw is True or False, not 'yes'"):
        decoder.generate("w5", raw="yes")


def test_derived_seeds_follow_from_the_seed_and_the_index_as_documented():
    import hashlib

    assert derived_seed(5, 0) == 5
    first = int.from_bytes(hashlib.sha256(b"5/1").digest()[:8], "big")
    assert derived_seed(5, 1) == first // 2
    seeds = {derived_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert all(SamplingParams(seed=seed).seed == seed for seed in seeds | {fresh_seed()})
