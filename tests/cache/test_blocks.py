"""Which blocks belong to which text: never one to two, unless both begin alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.cache.blocks import Blocks
from eagle.cache.store import BLOCK


def text(*parts, length=BLOCK):
    """A text of whole blocks, each of one token, and two tokens more."""
    return [part for part in parts for _ in range(length)] + [0, 0]


def test_a_text_that_begins_alike_finds_the_blocks_of_one_that_ended():
    blocks = Blocks(8)
    first = blocks.take(text(1, 2), 3)
    assert first.shared == 0
    blocks.share(first, text(1, 2))
    own = list(first.blocks)
    blocks.give_back(first)
    assert blocks.free == 8
    second = blocks.take([*text(1, 2)[:-1], 7, 7], 4)
    assert second.shared == 2 * BLOCK
    assert second.blocks[:2] == own[:2]


def test_a_text_finds_the_blocks_of_one_that_still_runs():
    blocks = Blocks(8)
    first = blocks.take(text(1), 2)
    blocks.share(first, text(1))
    second = blocks.take(text(1), 2)
    assert second.shared == BLOCK
    assert set(first.blocks) & set(second.blocks) == {first.blocks[0]}
    blocks.give_back(first)
    third = blocks.take(text(1), 2)
    assert third.blocks[0] == second.blocks[0]


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK])
def test_another_token_anywhere_before_or_right_behind_a_block_makes_it_another(place):
    """Behind it too: the head's last entry of a block holds the token that follows."""
    blocks = Blocks(8)
    held = blocks.take(text(1), 2)
    blocks.share(held, text(1))
    other = text(1)
    other[place] = 5
    assert blocks.take(other, 2).shared == 0


def test_the_last_token_of_a_prompt_is_always_read():
    blocks = Blocks(8)
    held = blocks.take(text(1, 2), 3)
    blocks.share(held, text(1, 2))
    assert blocks.take(text(1, 2)[: 2 * BLOCK], 3).shared == BLOCK
    assert blocks.take(text(1, 2)[: 2 * BLOCK + 1], 3).shared == 2 * BLOCK


def test_only_blocks_that_are_full_of_committed_text_are_found():
    blocks = Blocks(8)
    held = blocks.take(text(1, 2), 3)
    blocks.share(held, text(1, 2)[: 2 * BLOCK])  # the root is the last of the second block
    assert blocks.take(text(1, 2), 3).shared == BLOCK


def test_where_there_are_too_few_the_answer_is_none_and_nothing_is_lost():
    blocks = Blocks(4)
    held = blocks.take(text(1), 3)
    blocks.share(held, text(1))
    assert blocks.take(text(1, 2), 3) is None
    assert blocks.take(text(9), 2) is None
    assert blocks.free == 1
    assert blocks.take(text(1), 2).shared == BLOCK
    blocks.give_back(held)
    assert blocks.free == 2


def test_what_was_unused_for_longest_makes_room_first_and_its_end_before_its_beginning():
    blocks = Blocks(5)
    for first in (1, 2):
        held = blocks.take(text(first, 3), 2)
        blocks.share(held, text(first, 3))
        blocks.give_back(held)
    blocks.give_back(blocks.take([7], 2))  # one was free, the other is taken from the older text
    assert blocks.take(text(1, 3), 3).shared == BLOCK
    assert blocks.take(text(2, 3), 2).shared == 2 * BLOCK


def test_what_is_forgotten_is_not_found():
    blocks = Blocks(4)
    held = blocks.take(text(1, 2), 3)
    blocks.share(held, text(1, 2))
    blocks.forget()
    assert blocks.take(text(1), 1).shared == 0  # nothing but what is in use is left
    blocks.give_back(held)
    blocks.forget()
    assert blocks.take(text(1, 2), 3).shared == 0


def test_nothing_is_shared_where_that_is_not_allowed():
    blocks = Blocks(8, sharing=False)
    held = blocks.take(text(1), 2)
    blocks.share(held, text(1))
    blocks.give_back(held)
    assert blocks.take(text(1), 2).shared == 0


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_block_is_ever_written_by_one_text_and_read_by_another(data):
    total = data.draw(st.integers(3, 9))
    blocks, running, content = Blocks(total), [], {}
    for _ in range(data.draw(st.integers(1, 25))):
        kind = data.draw(st.sampled_from(["take", "share", "give back", "forget"]))
        if kind == "take":
            tokens = text(*data.draw(st.lists(st.integers(1, 2), max_size=3)))
            need = len(tokens) // BLOCK + 1
            held = blocks.take(tokens, need)
            assert (held is None) == (blocks.free < need) or held is not None
            if held is None:
                continue
            for place in range(held.shared // BLOCK):  # what it finds is what it would write
                at = place * BLOCK
                assert content[held.blocks[place]] == tokens[: at + BLOCK + 1]
            own = held.blocks[held.shared // BLOCK :]
            used = [b for other, _ in running for b in other.blocks]
            assert not set(own) & set(used), "a block in use was dealt out"
            assert len(set(own)) == len(own)
            assert 0 not in held.blocks
            for place in range(held.shared // BLOCK, need):
                content[held.blocks[place]] = tokens[: (place + 1) * BLOCK + 1]
            running.append((held, tokens))
        elif kind == "forget":
            blocks.forget()
        elif running:
            held, tokens = running[data.draw(st.integers(0, len(running) - 1))]
            if kind == "share":
                blocks.share(held, tokens)
            else:
                running.remove((held, tokens))
                blocks.give_back(held)
    for held, _ in running:
        blocks.give_back(held)
    assert blocks.free == total
