"""A suffix automaton against plain searching, and what of which texts is drafted from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin import BuildContext
from eagle_strategies.drafters.automaton import ROOT, SuffixAutomaton, Walk
from eagle_strategies.drafters.suffix import Suffix, SuffixConfig

TEXTS = st.lists(st.integers(0, 2), max_size=24)


def occurrences(text, part):
    return sum(text[place : place + len(part)] == part for place in range(len(text)))


def suffix_elsewhere(text, other):
    """Return the length of the longest suffix of a text that occurs in another one."""
    return max(n for n in range(len(text) + 1) if not n or occurrences(other, text[-n:]))


def made(text):
    automaton = SuffixAutomaton()
    for token in text:
        automaton.push(token)
    return automaton


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_every_string_is_counted_as_often_as_it_occurs(text):
    automaton = made(text)
    for start in range(len(text)):
        state = ROOT
        for end in range(start, len(text)):
            state = automaton.follow[state][text[end]]
            assert automaton.count[state] == occurrences(text, text[start : end + 1])


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_the_link_of_a_text_is_its_longest_suffix_that_occurred_before(text):
    automaton = made(text)
    known = max(automaton.link[automaton.last], ROOT)
    assert automaton.length[known] == (suffix_elsewhere(text, text[:-1]) if text else 0)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_a_walk_finds_the_longest_suffix_in_a_text_that_grows(other, text, more):
    automaton, read = made(other), []
    walk = Walk(automaton)
    for number, token in enumerate(text):
        walk.push(token)
        read.append(token)
        assert walk.place[1] == suffix_elsewhere(read, other)
        if number < len(more):
            # What grows is noticed with the next token; what was found is found still.
            found = walk.place[1]
            automaton.push(more[number])
            other = [*other, more[number]]
            assert walk.place[1] == found
            walk._state, walk._length = ROOT, 0
            for again in read:
                walk.push(again)


def suffix(**settings):
    return Suffix(SuffixConfig(**settings), BuildContext())


def ready(head, slot=0):
    trie = head._readers[slot].continuations(head._config.nodes)
    return list(zip(trie.tokens[1:], trie.parents[1:], strict=True))


def test_continuations_are_as_likely_as_they_were_frequent():
    head = suffix()
    head.begin_request(0, [1, 2, 7, 1, 2, 8, 1, 2, 7, 5, 1, 2])
    trie = head._readers[0].continuations(2)
    assert trie.tokens[1:] == [7, 8]
    first, second = (round(2.718281828459045**score, 6) for score in trie.scores[1:])
    assert (first, second) == (round(2 / 3, 6), round(1 / 3, 6))


def test_what_repeats_itself_is_taken_to_go_on_so():
    head = suffix(nodes=5)
    head.begin_request(0, [1, 2, 3, 1, 2])
    assert ready(head) == [(3, 0), (1, 1), (2, 2), (3, 3), (1, 4)]


def test_nothing_of_another_request_is_looked_up_unless_it_is_asked_for():
    text = [1, 2, 3, 4, 5, 6, 7]
    for earlier, found in ((0, []), (100, [(4, 0), (5, 1), (6, 2), (7, 3)])):
        head = suffix(earlier=earlier)
        head.begin_request(0, text[:1])
        head.end_request(0, text)
        head.begin_request(0, [9, 2, 3])
        assert ready(head) == found
        head.end_request(0, [9, 2, 3])
        # The prompts of others are never kept.
        head.begin_request(1, [1])
        assert head._earlier.follow[ROOT].get(9) is None


def test_no_match_reaches_from_one_earlier_answer_into_the_next():
    head = suffix(earlier=100)
    for answer in ([1, 2], [3, 4]):
        head.begin_request(0, [0])
        head.end_request(0, [0, *answer])
    head.begin_request(0, [1, 2])
    assert ready(head) == []


def test_earlier_answers_are_forgotten_when_there_are_too_many():
    head = suffix(earlier=8)
    for start in range(5):
        head.begin_request(0, [0])
        head.end_request(0, [0, *range(10 * start, 10 * start + 5)])
        assert head._earlier.size <= 8 + 1
    head.begin_request(0, [40, 41])
    assert ready(head) == [(42, 0), (43, 1), (44, 2)]
