"""A request by itself: where special tokens, named as stop strings, end it."""

import pytest
import torch

from eagle.decoding.inputs import encode
from eagle.decoding.requests import Request, stop_tokens
from eagle.errors import RequestError
from eagle.plugin.sampling import SamplingParams
from tests.cli.conftest import word_tokenizer

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_special_token_as_a_stop_string_ends_the_text_in_front_of_it(tokenizer, ignore_eos):
    params = SamplingParams(stop=("<bos>", "not there"), ignore_eos=ignore_eos)
    request = Request(0, [5], params, 9, frozenset([EOS]), tokenizer)
    assert not request.ends_with([6, PAD, 7])
    assert request.ends_with([6, BOS, 7])
    event = request.deliver([6, PAD, BOS, 7])
    assert event.finish_reason == "stop"
    assert event.result.tokens == (6, PAD, BOS)
    assert event.result.text == "w6"


@pytest.mark.parametrize(("stop", "ends"), [((), False), (("<eos>",), True)])
def test_an_ignored_end_of_text_token_ends_the_text_only_as_a_stop_string(tokenizer, stop, ends):
    params = SamplingParams(stop=stop, ignore_eos=True)
    request = Request(0, [5], params, 9, frozenset([EOS]), tokenizer)
    assert request.ends_with([EOS]) == ends
    assert (request.deliver([6, EOS]).finish_reason == "stop") == ends


@pytest.mark.parametrize("stop", ["w5 <bos>", "<bos> ", "<bos><eos>"])
def test_a_special_token_beside_other_text_is_refused(tokenizer, stop):
    with pytest.raises(RequestError, match=r"<bos>'.* left out of the text.* by itself"):
        stop_tokens(("w7", stop), tokenizer)


def test_other_stop_strings_are_left_to_the_text(tokenizer):
    assert stop_tokens(("w5", "<bos", "bos"), tokenizer) == frozenset()
    assert stop_tokens(("<bos>", "w5", "<eos>"), tokenizer) == {BOS, EOS}
    assert stop_tokens((), None) == frozenset()


@pytest.mark.parametrize("raw", [True, False])
def test_half_of_a_surrogate_pair_is_no_text(tokenizer, raw):
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(RequestError, match=r"character 3 is '\\udce9'"):
        encode("caf\udce9", tokenizer, raw=raw, embeddings=64)


def test_seeds_that_differ_anywhere_are_different_chance():
    def drawn(seed):
        request = Request(0, [5], SamplingParams(seed=seed), 9, frozenset(), None)
        assert request.seed == seed
        return tuple(request.uniforms(4).tolist())

    seeds = [0, 1, 2**32, 2**32 + 1, 2**62, 2**63 - 1]
    assert len({drawn(seed) for seed in seeds}) == len(seeds)
    assert drawn(2**32 + 1) == drawn(2**32 + 1)
    numbers = Request(0, [5], SamplingParams(), 9, frozenset(), None).uniforms(1000)
    assert numbers.dtype == torch.float64
    assert 0 <= numbers.min() < numbers.max() < 1
