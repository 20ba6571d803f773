"""Which earlier place is read on from, and what a cycle costs where there is none."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.cycle import Cycle
from eagle.errors import SpecError
from eagle.plugin import BuildContext, Committed, Drafted, Step, pack_integers, unpack_integers
from eagle_strategies.drafters.prompt_lookup import PromptLookup, PromptLookupConfig

VOCAB = 50


def lookup(text, *, rows=64, dtype=torch.float32, **settings):
    """Return a head that has absorbed a text, and the state behind it."""
    head = PromptLookup(PromptLookupConfig(**settings), BuildContext())
    info = SimpleNamespace(vocab_size=VOCAB, hidden_size=4)
    head.load(SimpleNamespace(device=torch.device("cpu"), dtype=dtype, info=info), None)
    head.allocate(1, rows)
    count = len(text) - 1
    whole, length = torch.tensor([text]), torch.zeros(1, dtype=torch.int64)
    states = head.absorb(
        Committed(
            tokens=whole[:, 1:],
            own=whole[:, :-1],
            features=torch.zeros(1, count, 4),
            count=torch.tensor([count]),
            step=Step.chain(length, count, rows),
        )
    )
    return head, states[:, -1:]


def drafts(head, state, count):
    """Return the likeliest continuation, and what else is proposed at each level."""
    found = []
    for level in range(1, count + 1):
        logits = head.logits(state)[0, 0]
        order = logits.argsort(descending=True, stable=True)
        some = [int(token) for token in order if logits[token] > -torch.inf]
        found.append(some if len(some) < VOCAB else [])
        token = order[:1][None]
        state = head.extend(Drafted(token, state, level, None))
    return found


def test_the_longest_match_goes_first_then_the_latest():
    # 2 3 occurs twice, 1 2 3 once, before that.
    head, state = lookup([1, 2, 3, 10, 9, 2, 3, 11, 8, 2, 3, 12, 1, 2, 3])
    assert drafts(head, state, 2) == [[10], [9]]
    head, state = lookup([1, 2, 3, 10, 9, 2, 3, 11, 8, 2, 3, 12, 7, 2, 3])
    assert drafts(head, state, 2) == [[12], [7]]


def test_several_continuations_make_a_trie_that_narrows():
    text = [1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 6, 8, 1, 2, 3, 7, 7, 1, 2, 3]
    head, state = lookup(text, continuations=3)
    first = head.logits(state)[0, 0]
    assert first.topk(2).indices.tolist() == [7, 4]
    below = head.extend(Drafted(torch.tensor([[4]]), state, 1, None))
    assert drafts(head, below, 1) == [[6, 5]]
    nowhere = head.extend(Drafted(torch.tensor([[30]]), state, 1, None))
    assert drafts(head, nowhere, 1) == [[]]


def test_what_repeats_itself_is_taken_to_go_on_so():
    head, state = lookup([1, 2, 3, 1, 2])
    assert drafts(head, state, 5) == [[3], [1], [2], [3], [1]]


def test_where_nothing_matches_anything_is_proposed_and_nothing_offered():
    head, state = lookup([1, 2, 3, 4, 5, 6])
    assert drafts(head, state, 1) == [[]]
    head.begin_request(0, [1, 2, 3, 4, 5])
    head.follow(0, [6])
    assert list(head.offer(2)) == [0, 0]


def test_a_match_is_as_short_as_was_asked_for():
    assert drafts(*lookup([1, 2, 3, 1]), 1) == [[]]
    assert drafts(*lookup([1, 2, 3, 1], shortest=1), 1) == [[2]]


def test_places_in_long_texts_are_exact_in_bfloat16():
    text = [token % 40 for token in range(257)] + [41, 42, 43, 44] + [45] * 40 + [41, 42]
    head, state = lookup(text, rows=400, dtype=torch.bfloat16)
    assert drafts(head, state, 2) == [[43], [44]]
    numbers = torch.tensor([[0, 255, 256, 257, 16_383, 16_384, 2_097_151]])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(unpack_integers(pack_integers(numbers, dtype)), numbers)


def test_host_and_device_find_the_same():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        text = torch.randint(4, (14,), generator=generator).tolist()
        head, state = lookup(text)
        guess = head.reader(0, text).guess()
        assert drafts(head, state, 1) == [[] if guess is None else [guess[0]]]


def test_what_was_wrong_of_late_is_offered_no_more_and_what_was_right_for_longer():
    head = PromptLookup(PromptLookupConfig(), BuildContext())
    head.begin_request(0, [1, 2, 3, 4, 1, 2])
    (begun,) = head.offer(1)
    assert begun > 0
    head.follow(0, [3, 4, 1, 2, 3, 4, 1, 2])
    assert head.offer(1)[0] > begun
    for token in range(10, 18):
        head.follow(0, [token, 1, 2])
    assert list(head.offer(1)) == [0]


def test_the_first_wrong_guess_is_enough_for_matches_of_every_length():
    head = PromptLookup(PromptLookupConfig(), BuildContext())
    for said, offered in ((3, True), (9, False)):
        # The match behind it is of four tokens, the one before it of two.
        head.begin_request(0, [7, 5, 6, 4, 8, 1, 2, 3, 0, 1, 2])
        assert head.offer(1)[0] > 0
        head.follow(0, [said])
        confidence = head._confidence[0]
        assert (confidence.rate(4) > 0.4) == offered
        assert confidence.rate(2) <= confidence.rate(4) or offered


def test_a_cycle_verifies_the_root_alone_where_nothing_is_found(pair, monkeypatch):
    made = Decoder.from_spec(DecoderSpec(head="prompt-lookup", tree="offered"), target=pair[0])
    widths = []
    verify = Cycle.verify

    def noting(self, slots, tree, span):
        widths.append(tree.tokens.shape[1])
        return verify(self, slots, tree, span)

    monkeypatch.setattr(Cycle, "verify", noting)
    params = {"max_new_tokens": 12, "temperature": 3.0, "seed": 5, "ignore_eos": True}
    found = made.generate([3, 5], **params)
    text = [3, 5, *found.tokens]
    pairs = list(pairwise(text))
    assert len(set(pairs)) == len(pairs), "a pair of tokens came twice: choose another seed"
    assert widths == [1] * 11
    widths.clear()
    made.generate([*range(3, 41, 2), 3, 5], max_new_tokens=12, ignore_eos=True)
    assert max(widths) > 1


def test_a_match_that_can_never_be_is_refused():
    with pytest.raises(SpecError, match="shortest: 5 is more than longest: 4, so nothing would"):
        Decoder.from_spec(DecoderSpec(head={"name": "prompt-lookup", "shortest": 5}, tree="chain"))
