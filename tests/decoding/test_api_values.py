"""Any value at all in Python: an answer, or an error of this library's, and it goes on."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle import Decoder, DecoderSpec, EagleError, Result, SamplingParams, load_spec
from eagle.target.causal_lm import Target
from tests.cli.conftest import word_tokenizer

PROMPT = [5, 6, 7]

words = st.sampled_from(["w5", "w9 w10", "<eos>", "", " ", "caf\udce9", "a\0b", "x" * 300])
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(0, 70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.complex_numbers(allow_nan=False),
)
ids = st.lists(st.integers(3, 63), min_size=1, max_size=6)
tensors = st.one_of(
    ids.map(torch.tensor),
    ids.map(np.array),
    ids.map(lambda some: torch.tensor([some])),
    st.sampled_from(
        [
            torch.tensor(3), torch.tensor([0.5]), torch.tensor([True]), torch.zeros(2, 2, 2).long(),
            torch.zeros(2, 0).long(), torch.empty(3, device="meta"), torch.tensor([3]).to_sparse(),
            np.array(["w5"]), np.array([3.5]), np.array([], dtype=int), np.array([None]),
        ]
    ),
)  # fmt: skip
oddities = st.sampled_from(
    [
        None,
        b"w5",
        bytearray(b"w5"),
        memoryview(b"w5"),
        object(),
        object,
        print,
        {3},
        range(3, 9),
        ...,
    ]
)
parameters = st.sampled_from([SamplingParams(max_new_tokens=2), SamplingParams(temperature=2)])
leaves = st.one_of(words, numbers, tensors, oddities, parameters)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.sampled_from(["role", "content", "tools", "x"]), inner, max_size=2),
        st.lists(inner, max_size=2).map(iter),
    ),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.one_of(st.just("user"), values), "content": values}
    ),
    max_size=2,
)
prompts = st.one_of(values, ids, messages, st.lists(st.one_of(ids, words, messages), max_size=3))
fields = st.dictionaries(
    st.sampled_from([*(set(SamplingParams.model_fields) - {"max_new_tokens"}), "sed"]),
    st.one_of(values, st.integers(0, 9), st.floats(0, 2)),
    max_size=3,
)
maybe = {
    "params": values,
    "processors": st.one_of(values, st.lists(st.just(lambda ids, scores: scores), max_size=2)),
    "raw": st.one_of(st.booleans(), values),
    "chat_template_kwargs": st.one_of(
        values, st.dictionaries(st.sampled_from(["message", "loop", "role"]), values, max_size=2)
    ),
}


@pytest.fixture(scope="module")
def decoder(spec, pair):
    target = Target(pair[0].model, word_tokenizer(), "words")
    return Decoder.from_spec(spec(runtime={"max_length": 64}), target=target)


def bounded(examples):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


def check(decoder, prompt, options, sampling):
    """Ask for an answer; whatever is not an answer is a sentence of this library's."""
    if "params" not in options:
        options = {"max_new_tokens": 2} | options | sampling
    try:
        found = decoder.generate(prompt, **options)
    except EagleError as error:
        said = str(error)
        assert 0 < len(said) < 600
        assert said.count("\n") == 0
    else:
        for result in found if isinstance(found, list) else [found]:
            assert isinstance(result, Result)
            assert 1 <= len(result.tokens) <= 64


def check_spec(name, overrides):
    with suppress(EagleError):
        assert isinstance(load_spec(name, overrides), DecoderSpec)


@bounded(50)
@given(prompts, st.fixed_dictionaries({}, optional=maybe), fields)
def test_any_value_gets_an_answer_or_an_error_of_ours(decoder, prompt, options, sampling):
    check(decoder, prompt, options, sampling)


@bounded(50)
@given(st.one_of(values, st.just("chain")), st.one_of(values, st.lists(st.text(), max_size=2)))
def test_any_value_is_a_spec_or_an_error_of_ours(name, overrides):
    check_spec(name, overrides)


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
@bounded(5000)
@given(prompts, st.fixed_dictionaries({}, optional=maybe), fields)
def test_many_values_get_an_answer_or_an_error_of_ours(decoder, prompt, options, sampling):
    check(decoder, prompt, options, sampling)


@pytest.mark.fuzz
@bounded(5000)
@given(st.one_of(values, st.just("chain")), st.one_of(values, st.lists(st.text(), max_size=2)))
def test_many_values_are_specs_or_errors_of_ours(name, overrides):
    check_spec(name, overrides)


def test_the_decoder_answers_as_before(decoder):
    expected = decoder.generate(PROMPT, max_new_tokens=12, ignore_eos=True).tokens
    for wrong in ({"temperature": -1}, {"processors": 3}, {"params": {}}):
        with pytest.raises(EagleError):
            decoder.generate(PROMPT, **wrong)
    assert decoder.generate(PROMPT, max_new_tokens=12, ignore_eos=True).tokens == expected
