"""Which pieces of waiting prompts a pass reads."""

import copy
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import Decoder
from eagle.decoding.reading import Reader, apart


def request(length, processors=()):
    return SimpleNamespace(prompt=[0] * length, processors=processors)


def passes(reader):
    while reader:
        yield reader.take()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), budget=st.integers(1, 50))
def test_every_token_is_read_once_in_order_and_no_pass_reads_too_many(lengths, budget):
    reader = Reader(budget)
    for slot, length in enumerate(lengths):
        reader.add(slot, request(length))
    read = [0] * len(lengths)
    for pieces in passes(reader):
        assert 0 < sum(piece.end - piece.start for piece in pieces) <= budget
        assert len({piece.slot for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.start == read[piece.slot] < piece.end
            read[piece.slot] = piece.end
            assert piece.last == (piece.end == lengths[piece.slot])
    assert read == lengths


def test_a_long_prompt_neither_starves_nor_holds_up_short_ones():
    reader = Reader(16)
    reader.add(0, request(100))
    reader.add(1, request(5))
    (first, second) = reader.take()
    assert (first.slot, first.start, first.end) == (0, 0, 11)
    assert second.last
    seen = 11
    for arrival in range(2, 20):  # as many short ones as there is room for
        reader.add(arrival, request(8))
        (long, short) = reader.take() if seen < 100 else (None, None)
        if long is None:
            break
        seen = long.end
        assert short.last
    assert seen == 100


def test_a_prompt_of_which_a_part_is_there_is_read_from_there():
    reader = Reader(64)
    reader.add(3, request(70), 64)
    (piece,) = reader.take()
    assert (piece.start, piece.end, piece.last) == (64, 70, True)
    assert not reader


def test_prompts_with_processors_are_read_alone_and_in_order():
    reader = Reader(64)
    for slot, processors in enumerate([(), (), (len,), (), ()]):
        reader.add(slot, request(2, processors))
    groups = apart(reader.take())
    assert [[piece.slot for piece in group] for group in groups] == [[0, 1], [2], [3, 4]]


def test_few_short_prompts_wait_for_others_but_not_for_ever():
    reader = Reader(4096)
    reader.add(0, request(20))
    assert reader.worth(8), "one of eight slots idles: that costs more than a pass"
    assert not reader.worth(32)
    reader.add(1, request(30))
    reader.add(2, request(9))
    assert not reader.worth(32)
    reader.add(3, request(9))
    assert reader.worth(32)
    reader.take()
    reader.add(4, request(300))
    assert reader.worth(32), "so many tokens keep the device busy by themselves"
    reader.take()
    reader.add(5, request(9))
    waited = [reader.worth(32) for _ in range(9)]
    assert waited == [False] * 8 + [True]
    reader.take()
    reader.add(6, request(9))
    assert [reader.worth(32) for _ in range(9)] == waited, "each pass begins anew"


@pytest.mark.parametrize(
    ("decoded", "prompts", "waiting", "read"),
    [
        (17, 1, False, True),
        (18, 1, False, False),  # it would hold up eighteen, and another one comes soon
        (31, 2, False, True),
        (31, 2, True, False),  # slots that are free are taken at once
        (28, 4, True, True),
    ],
)
def test_prompts_are_read_alone_where_few_are_held_up(decoded, prompts, waiting, read, spec, pair):
    loop = copy.copy(Decoder.from_spec(spec(), target=pair[0]).loop)
    reader = Reader(4096)
    for slot in range(prompts):
        reader.add(slot, request(9))
    slots = SimpleNamespace(requests=[object()] * decoded + [None] * (32 - decoded))
    loop.seats = SimpleNamespace(batch=slots, reader=reader)
    loop._line = [object()] if waiting else []
    assert loop._worth_reading() is read
