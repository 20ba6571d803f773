"""Incremental text: characters over several tokens, stop strings over several cycles."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.decoding.text import TextStream, Vocabulary
from tests import vocabularies


class Bytes:
    """A tokenizer whose ids are bytes; id 256 is special."""

    def decode(self, ids, **_):
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def _feed(text, stops, every=1):
    stream, shown = TextStream(Bytes(), stops), ""
    for number, token in enumerate(text.encode()):
        stopped = stream.push(token, drafted=False)
        if stopped or number % every == every - 1:
            shown += "".join(piece.text for piece in stream.take(final=stopped))
        if stopped:
            return shown, True, number + 1
    shown += "".join(piece.text for piece in stream.take(final=True))
    assert shown == stream.text
    return shown, False, len(text.encode())


@given(st.text(max_size=30), st.integers(1, 5))
def test_text_comes_out_whole(text, every):
    assert _feed(text, (), every)[0] == text


@given(st.text("ab€", max_size=20), st.text("ab€", min_size=1, max_size=4), st.integers(1, 5))
def test_text_ends_before_the_first_stop_string(text, stop, every):
    shown, stopped, _ = _feed(text, (stop,), every)
    assert stopped == (stop in text)
    assert shown == text.split(stop)[0]


def test_nothing_is_shown_that_a_stop_string_may_take_back():
    stream = TextStream(Bytes(), ("END",))
    for token in b"oneE":
        stream.push(token, drafted=False)
    assert "".join(p.text for p in stream.take(final=False)) == "one"
    stream.push(ord("x"), drafted=False)
    assert "".join(p.text for p in stream.take(final=False)) == "Ex"


def test_pieces_say_which_tokens_were_drafted():
    stream = TextStream(Bytes(), ())
    stream.push(ord("a"), drafted=True)
    stream.push(ord("b"), drafted=False)
    assert [(p.text, p.drafted) for p in stream.take(final=True)] == [("a", True), ("b", False)]


def test_bytes_that_never_become_a_character_are_not_held_for_ever():
    stream = TextStream(Bytes(), ())
    for _ in range(9):
        stream.push(0x80, drafted=False)
    assert stream.take(final=False)


def test_without_a_tokenizer_there_is_no_text():
    stream = TextStream(None, ())
    assert stream.push(3, drafted=False) is False
    assert stream.take(final=True) == ()


def stream_of(tokenizer, ids, stops=(), every=1):
    """Return the text of a stream, and how many tokens it took."""
    stream, shown = TextStream(tokenizer, stops), ""
    for number, token in enumerate(ids):
        stopped = stream.push(token, drafted=False)
        if stopped or number % every == every - 1:
            shown += "".join(piece.text for piece in stream.take(final=stopped))
        if stopped:
            return shown, number + 1
    shown += "".join(piece.text for piece in stream.take(final=True))
    assert shown == stream.text
    return shown, len(ids)


@functools.cache
def tokenizer_of(kind):
    return vocabularies.KINDS[kind]()


@functools.cache
def bytes_of(kind):
    """Return ids that decode to a broken character or are named after a byte: they make runs."""
    tokenizer = tokenizer_of(kind)
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    decoded = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    found = [i for i, name in enumerate(names) if name.startswith("<0x") or "\ufffd" in decoded[i]]
    return found or list(range(len(tokenizer)))


@st.composite
def sequences(draw, kind):
    """Token ids of which many are bytes, special, or one and the same."""
    count = len(tokenizer_of(kind))
    special = [count - 1, count - 2, count - 3]
    some = st.one_of(
        st.integers(0, count - 1), st.sampled_from(special), st.sampled_from(bytes_of(kind))
    )
    runs = st.lists(st.tuples(some, st.sampled_from([1, 1, 1, 2, 3, 9, 20])), max_size=30)
    return [token for token, times in draw(runs) for _ in range(times)]


@pytest.mark.parametrize("kind", vocabularies.KINDS)
@settings(max_examples=50)
@given(st.data())
def test_streamed_text_is_what_the_tokenizer_makes_of_all_tokens(kind, data):
    check_streamed_text(kind, data)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", vocabularies.KINDS)
@settings(max_examples=4000, derandomize=False)
@given(st.data())
def test_streamed_text_is_what_the_tokenizer_makes_of_very_many(kind, data):
    check_streamed_text(kind, data)


def check_streamed_text(kind, data):
    tokenizer, ids = tokenizer_of(kind), data.draw(sequences(kind))
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert stream_of(tokenizer, ids, every=data.draw(st.integers(1, 5)))[0] == whole
    stop = data.draw(st.sampled_from(["the cat", "\n", " a", "€"]))
    shown, taken = stream_of(tokenizer, ids, (stop,))
    ended = tokenizer.decode(ids[:taken], skip_special_tokens=True)
    assert shown == ended.split(stop)[0]


@pytest.mark.parametrize("kind", ["byte_fallback", "metaspace"])
def test_a_special_token_takes_no_space_away(kind):
    tokenizer = tokenizer_of(kind)
    for between in (["<special>"], ["<special>"] * 30, ["</s>", "<added>", "<special>"]):
        ids = tokenizer.convert_tokens_to_ids(["▁the", *between, "▁cat"])
        added = "<added>" if "<added>" in between else ""
        assert stream_of(tokenizer, ids)[0] == f"the{added} cat"


def test_a_run_of_byte_tokens_is_text_only_if_all_of_it_is():
    tokenizer = tokenizer_of("byte_fallback")
    euro = tokenizer.convert_tokens_to_ids(["<0xE2>", "<0x82>", "<0xAC>"])
    assert stream_of(tokenizer, euro * 5)[0] == "€" * 5
    assert stream_of(tokenizer, [*euro * 5, euro[0]])[0] == "\ufffd" * 16


def test_a_stop_string_of_byte_tokens_ends_the_text_at_once():
    tokenizer = tokenizer_of("byte_fallback")
    ids = tokenizer.convert_tokens_to_ids(["▁the", "<0x0A>", "<0x0A>", "▁cat"])
    assert stream_of(tokenizer, ids, ("\n\n",)) == ("the", 3)


def test_a_space_that_a_text_would_lose_ends_a_run_of_byte_tokens():
    tokenizer = tokenizer_of("byte_fallback")
    ids = tokenizer.convert_tokens_to_ids(["▁the", "<0xE2>", "▁", "▁cat"])
    assert stream_of(tokenizer, ids, (" ",)) == ("the\ufffd", 3)
    stream = TextStream(tokenizer, ())
    for token in ids[:3]:
        stream.push(token, drafted=False)
    assert "".join(piece.text for piece in stream.take(final=False)) == "the\ufffd "


def test_what_is_decoded_again_with_each_token_does_not_grow():
    class Counting(Bytes):
        longest = 0

        def decode(self, ids, **_):
            Counting.longest = max(Counting.longest, len(ids))
            return super().decode(ids)

    for text in ("Plain words, " * 50, "\u20ac" * 300, "\U0001f600" * 200):
        assert stream_of(Counting(), text.encode())[0] == text
    stream_of(Counting(), [0x80] * 500)
    assert Counting.longest < 40


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_a_fast_tokenizer_is_asked_directly_and_its_vocabulary_made_once(kind):
    tokenizer = vocabularies.KINDS[kind]()
    assert Vocabulary.of(tokenizer) is Vocabulary.of(tokenizer)
    assert Vocabulary.of(tokenizer).fast


def test_a_tokenizer_with_a_decode_of_its_own_is_asked_for_that():
    tokenizer = vocabularies.byte_level()

    class Louder(type(tokenizer)):
        def decode(self, ids, **more):
            return super().decode(ids, **more).upper()

    ids = tokenizer.encode("the cat", add_special_tokens=False)
    louder = Louder(tokenizer_object=tokenizer.backend_tokenizer)
    assert stream_of(louder, ids)[0] == tokenizer.decode(ids).upper()
    tokenizer.decode = louder.decode
    assert stream_of(tokenizer, ids)[0] == louder.decode(ids)


def test_a_token_that_is_made_special_later_is_left_out_from_then_on():
    tokenizer = vocabularies.byte_level()
    ids = tokenizer.convert_tokens_to_ids(["a", "<added>", "b"])
    assert stream_of(tokenizer, ids)[0] == "a<added>b"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<added>"]})
    assert stream_of(tokenizer, ids)[0] == tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_a_token_of_whole_characters_is_looked_up_once():
    tokenizer = vocabularies.byte_level()
    vocabulary, asked = Vocabulary.of(tokenizer), []
    decode = vocabulary.decode
    vocabulary.decode = lambda ids: asked.append(list(ids)) or decode(ids)
    ids = tokenizer.convert_tokens_to_ids(["a", "Ġthe", "a", "Ġthe"])
    assert stream_of(tokenizer, ids)[0] == "a thea the"
    assert asked == [[ids[0]], [ids[1]]]
