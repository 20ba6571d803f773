"""Incremental text: characters over several tokens, stop strings over several cycles."""

from hypothesis import given
from hypothesis import strategies as st

from eagle.decoding.text import TextStream


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
