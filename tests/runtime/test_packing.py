"""Captured passes over prompts: who is in which, and what stands where nobody is."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import SamplingParams
from eagle.cycle import GREEDY, Piece
from eagle.runtime.packing import SIZES, PackedInputs, passes, size_of

CPU = torch.device("cpu")


def piece(slot, start, end, length=None, temperature=0.5):
    """Return a piece of a prompt whose token ids say whose and where they are."""
    prompt = [1000 * slot + place for place in range(end if length is None else length)]
    params = SamplingParams(temperature=temperature, seed=slot)
    return Piece(slot, SimpleNamespace(prompt=prompt, params=params), start, end)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 3000)), min_size=1, max_size=70))
def test_every_token_is_read_once_and_no_pass_is_too_large(sizes):
    pieces = [piece(slot, start, start + count) for slot, (start, count) in enumerate(sizes)]
    seen = [start for start, _ in sizes]
    for first, own in passes(pieces):
        assert own[0].slot == first
        assert [one.slot for one in own] == list(range(first, first + len(own)))
        assert len(own) <= 30
        assert sum(one.end - one.start for one in own) <= size_of(own) <= SIZES[-1]
        for one in own:
            assert one.start == seen[one.slot] < one.end
            seen[one.slot] = one.end
            assert one.last == (one.end == pieces[one.slot].end)
    assert seen == [one.end for one in pieces]


def test_a_pass_with_room_left_says_the_same_of_its_last_slot_once_more():
    inputs = PackedInputs(CPU, 5)
    pieces = [piece(3, 2, 5, length=9), piece(1, 0, 2, temperature=0.7)]
    inputs.load(pieces, torch.tensor([[0.25], [0.75]], dtype=torch.float64), 32)
    packed = inputs.packed(32)
    segments = packed.step.segments
    assert segments.pieces is None, "the host is not asked"
    assert segments.slots.tolist() == [3, 1, 1, 1, 1]
    assert segments.offsets.tolist() == [0, 3, 5, 5, 5, 5]
    assert (packed.step.lengths + segments.offsets.diff()).tolist() == [5, 2, 2, 2, 2]
    assert packed.ended.tolist() == [False, True, True, True, True]
    assert segments.owners.tolist() == [0, 0, 0, 1, 1] + [1] * 27
    # What is behind all pieces goes where the next pass writes before it reads.
    assert packed.step.rows.tolist() == [[2, 3, 4, 0, 1] + [2] * 27]
    assert packed.tokens[0, :5].tolist() == [3002, 3003, 3004, 1000, 1001]
    assert packed.follow[0, :4].tolist() == [3003, 3004, 3005, 1001]
    assert inputs.uniforms.tolist() == [[0.25]] + [[0.75]] * 4
    assert inputs.sampling.temperature.tolist() == [GREEDY.temperature] + [pytest.approx(0.7)] * 4
    assert not inputs.sampling.greedy


def test_what_was_in_a_larger_pass_is_not_in_the_next():
    inputs = PackedInputs(CPU, 4)
    uniforms = torch.zeros(4, 1, dtype=torch.float64)
    inputs.load([piece(n, 0, 30) for n in range(4)], uniforms, 128)
    inputs.load([piece(2, 7, 9, temperature=0)], uniforms[:1], 32)
    packed = inputs.packed(32)
    assert packed.step.segments.slots.tolist() == [2] * 4
    assert packed.step.segments.offsets.tolist() == [0, 2, 2, 2, 2]
    assert packed.tokens.tolist() == [[2007, 2008] + [0] * 30]
    assert inputs.sampling.greedy
