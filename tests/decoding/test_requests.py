"""A request by itself: what ends it, and the text of its events, whenever that is looked at."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.decoding.inputs import encode
from eagle.decoding.requests import Request, stop_tokens
from eagle.errors import RequestError
from eagle.plugin.sampling import SamplingParams
from tests import vocabularies
from tests.cli.conftest import word_tokenizer
from tests.decoding.test_text import sequences, tokenizer_of

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


def events_of(tokenizer, cycles, look=None, stop=()):
    """Return the events of a request that is given these cycles; look at one as soon as it is."""
    limit = sum(map(len, cycles))
    request = Request(0, [5], SamplingParams(stop=stop), limit, frozenset(), tokenizer)
    events = []
    for number, tokens in enumerate(cycles):
        events.append(request.deliver(tokens))
        if number == look:
            assert events[number].pieces is events[number].pieces
        if events[-1].finish_reason:
            break
    return events


@pytest.mark.parametrize("kind", vocabularies.KINDS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_an_event_says_does_not_depend_on_who_looks_when(kind, data):
    tokenizer, ids = tokenizer_of(kind), [3, *data.draw(sequences(kind)), 4]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1), max_size=6)))
    cycles = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    # A stop string that never comes has each token looked at when it is delivered.
    told = events_of(tokenizer, cycles, stop=("nothing that is ever said",))
    expected = [event.text for event in told]
    assert "".join(expected) == told[-1].result.text == tokenizer.decode(ids, True)
    late = events_of(tokenizer, cycles, data.draw(st.integers(0, len(cycles) - 1)))
    assert late[-1].result.text == told[-1].result.text
    order = data.draw(st.permutations(range(len(late))))
    shown = {number: "".join(piece.text for piece in late[number].pieces) for number in order}
    assert "".join(shown[number] for number in range(len(late))) == "".join(expected)
    at_once = [event.pieces for event in events_of(tokenizer, cycles)]
    assert [event.pieces for event in late] == at_once


def test_the_pieces_of_an_event_say_which_tokens_were_drafted(tokenizer):
    (event,) = events_of(tokenizer, [[5, 6, 7]])
    assert [(piece.text.strip(), piece.drafted) for piece in event.pieces] == [
        ("w5", True), ("w6", True), ("w7", False),
    ]  # fmt: skip


def test_an_event_that_nobody_looked_at_can_be_sent_and_compared(tokenizer):
    (event,), (other,) = events_of(tokenizer, [[5, 6]]), events_of(tokenizer, [[5, 6]])
    sent, kept = pickle.loads(pickle.dumps(event)), copy.copy(other)
    assert sent.text == kept.text == "w5 w6"
    assert sent.pieces == event.pieces
    assert "pieces=(Piece(" in repr(other)
    with pytest.raises(AttributeError, match="no attribute 'piece'"):
        _ = event.piece
