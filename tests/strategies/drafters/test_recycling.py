"""Which earlier place is drafted from, and that nothing of another text ever is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.cache.store import BLOCK
from eagle.plugin import (
    BuildContext,
    Committed,
    Drafted,
    Pages,
    Registry,
    Step,
    TokenTree,
    Verified,
    ancestor_mask,
    hookimpl,
)
from eagle.testing import tiny_target, tiny_text
from eagle_strategies.drafters.recycling import Recycling, RecyclingConfig
from tests.caches import noted_pieces
from tests.contracts import toys
from tests.exact import test_paging, test_sharing

paged, poisoned = test_paging.paged, test_paging.poisoned

VOCAB = 50
CPU = torch.device("cpu")
TREE = {"name": "static", "branching": [3, 2, 1]}


def head_of(rows=64, dtype=torch.float32, slots=1, pages=None, **settings):
    """Return a head whose features are logits already."""
    head = Recycling(RecyclingConfig(**settings), BuildContext())
    info = SimpleNamespace(vocab_size=VOCAB, hidden_size=VOCAB, layers=2)
    target = SimpleNamespace(device=CPU, dtype=dtype, info=info, logits=lambda x: x)
    head.load(target, None)
    head.allocate(slots, rows, pages)
    return head


def verified(head, text, tokens, parents, liked, path=(0,), *, slots=1, free=()):
    """Tell a head of a tree behind a text, whose last token is the root.

    Args:
        liked: by node, what the target holds likely behind it, the likeliest first.
        path: the accepted nodes.
        free: slots that idle.
    """
    count = len(tokens)
    above = torch.tensor([parents] * slots)
    seen = ancestor_mask(above, count)
    nodes = torch.tensor([tokens] * slots)
    tree = TokenTree(nodes, above, seen.sum(2) - 1, above * 0, seen)
    logits = torch.zeros(slots, count, VOCAB)
    for node, some in liked.items():
        for rank, token in enumerate(some):
            logits[:, node, token] = 20.0 - rank
    busy = torch.tensor([slot not in free for slot in range(slots)])
    real = ((above >= 0) | (torch.arange(count) == 0)) & busy[:, None]
    places = torch.tensor([path] * slots)
    own = nodes.gather(1, places)
    gain = torch.where(busy, len(path), 0)
    step = Step.chain(torch.full((slots,), len(text) - 1), len(path), 64)
    found = Verified(tree, logits, real, places)
    features = torch.zeros(slots, len(path), VOCAB)
    follow = torch.cat((own[:, 1:], own[:, :1] * 0 + 49), 1)
    return head.absorb(Committed(follow, own, features, gain, step, found))[:, -1:]


def absorbed(head, text, start=0, *, slot=None, liked=None, rows=64):
    """Tell a head of a text behind its first tokens; return the states behind all of it.

    Args:
        liked: what the target holds likely behind each place, the likeliest first; by default
            the token above the place's own.
    """
    count = len(text) - 1 - start
    logits = torch.zeros(1, count, VOCAB)
    for entry in range(count):
        place = start + entry
        some = [text[place] + 1] if liked is None else liked.get(place, [])
        for rank, token in enumerate(some):
            logits[0, entry, token] = 20.0 - rank
    whole = torch.tensor([text])[:, start:]
    where = None if slot is None else torch.tensor([slot])
    step = Step.chain(torch.tensor([start]), count, rows, where)
    given = (whole[:, 1:], whole[:, :-1], logits, torch.tensor([count]))
    return head.absorb(Committed(*given, step))[:, -1:]


def proposed(head, state):
    """Return what is proposed, the likeliest first; nothing where all is alike."""
    logits = head.logits(state)[0, 0]
    assert logits.isfinite().any()
    some = logits.argsort(descending=True, stable=True)[: int(logits.isfinite().sum())].tolist()
    return [] if len(some) == VOCAB else some


def test_what_the_target_held_likely_is_proposed_with_what_was_said():
    text = [1, 2, 9, 4, 1, 2]
    liked = {1: [30, 31, 32]}
    for said, expected in ((0.0, [30, 31, 32]), (0.01, [30, 31, 32, 9]), (0.9, [9, 30, 31, 32])):
        head = head_of(candidates=3, said=said)
        assert proposed(head, absorbed(head, text, liked=liked)) == expected


def test_chances_are_those_of_the_target():
    head = head_of(candidates=2, said=0)
    logits = head.logits(absorbed(head, [1, 2, 9, 4, 1, 2], liked={1: [30, 31]}))[0, 0]
    wanted = torch.zeros(VOCAB)
    wanted[30], wanted[31] = 20.0, 19.0
    torch.testing.assert_close(logits[30:32], wanted.log_softmax(0)[30:32], atol=1e-3, rtol=0)


def test_the_longest_match_goes_first_then_the_latest():
    liked = {1: [20], 4: [21], 7: [22]}
    for text, expected in (
        ([1, 2, 7, 3, 2, 7, 3, 2, 7, 1, 2], 20),
        ([1, 2, 7, 3, 2, 7, 4, 2, 7, 3, 2], 21),
        ([1, 2, 7, 3, 2, 7, 4, 2, 7, 6, 2], 22),
    ):
        head = head_of(candidates=1, said=0)
        assert proposed(head, absorbed(head, text, liked=liked)) == [expected]
        alone = head_of(candidates=1, said=0, longest=1)
        assert proposed(alone, absorbed(alone, text, liked=liked)) == [22]


def test_drafted_tokens_are_matched_with_those_before_them():
    text = [1, 2, 7, 3, 4, 2, 8, 3, 4, 1]
    head = head_of(candidates=1, said=0, longest=2)
    state = absorbed(head, text, liked={1: [20], 5: [21]})
    below = head.extend(Drafted(torch.tensor([[2]]), state, 1, None))
    assert proposed(head, below) == [20]
    below = head.extend(Drafted(torch.tensor([[30]]), below, 2, None))
    assert proposed(head, below) == []
    below = head.extend(Drafted(torch.tensor([[2]]), below, 3, None))
    assert proposed(head, below) == [21]


def test_a_token_that_is_new_has_nothing_to_propose():
    head = head_of()
    assert proposed(head, absorbed(head, [1, 2, 3, 4])) == []
    head.begin_request(0, [1, 2, 3])
    head.follow(0, [4])
    assert list(head.offer(1)) == [0]
    head.follow(0, [2])
    assert head.offer(1)[0] > 0


def test_what_was_written_and_taken_back_is_not_looked_at():
    head = head_of(candidates=1, said=0)
    absorbed(head, [1, 2, 3, 4, 5, 6, 7, 8], liked={n: [40] for n in range(8)})
    assert proposed(head, absorbed(head, [1, 2, 3, 9, 5], start=2, liked={})) == []
    assert proposed(head, absorbed(head, [1, 2, 3, 9, 2], start=3, liked={})) == [40]


def test_places_in_long_texts_are_exact_in_bfloat16():
    text = [token % 40 for token in range(257)] + [41, 42, 43, 44] + [45] * 40 + [41, 42]
    head = head_of(rows=400, dtype=torch.bfloat16, candidates=1, said=0)
    assert proposed(head, absorbed(head, text, rows=400, liked={258: [48]})) == [48]


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_slot_has_candidates_of_its_own_text_alone(in_blocks):
    pages = Pages.whole(2, 2 * BLOCK, CPU) if in_blocks else None
    head = head_of(rows=2 * BLOCK, slots=2, pages=pages, candidates=1, said=0)
    absorbed(head, [1, 2, 3, 4], slot=0, rows=2 * BLOCK, liked={1: [40]})
    state = absorbed(head, [7, 2, 9, 2], slot=1, rows=2 * BLOCK, liked={1: [41]})
    assert proposed(head, torch.cat((state, state)))[:1] == [40], "the first is the first slot's"
    assert head.logits(torch.cat((state, state)))[1, 0].argmax() == 41
    # Another text in the first slot: what is behind it is of the text before, and not seen.
    state = absorbed(head, [5, 2], slot=0, rows=2 * BLOCK)
    assert proposed(head, state) == []


def test_a_prefix_that_is_shared_is_drafted_from_and_garbage_behind_it_is_not():
    pages = Pages.whole(2, 2 * BLOCK, CPU)
    head = head_of(rows=2 * BLOCK, slots=2, pages=pages, candidates=1, said=0)
    text = [*(n % 40 for n in range(BLOCK)), 45, 3]
    absorbed(head, text, slot=0, rows=2 * BLOCK, liked={50: [41]})
    pages.table[1, 0] = pages.table[0, 0]
    for store in head._cache.stores:
        store[:, int(pages.table[1, 1]) * BLOCK :][:, :BLOCK] = torch.iinfo(torch.int32).min
    state = absorbed(head, [*text[:BLOCK], 46, 10], start=BLOCK, slot=1, rows=2 * BLOCK, liked={})
    logits = head.logits(torch.cat((state, state)))
    assert logits[1, 0].isfinite().nonzero().flatten().tolist() == [41]
    state = absorbed(head, [*text[:BLOCK], 46, 47], start=BLOCK, slot=1, rows=2 * BLOCK, liked={})
    assert head.logits(torch.cat((state, state)))[1, 0].tolist() == [0.0] * VOCAB


# --- what was verified ----------------------------------------------------------------------------

TEXT = [1, 2, 3]  # behind which 4 is accepted, and then 49
NODES = [3, 4, 5, 7, 4], [-1, 0, 0, 1, 2]


def behind(head, state, *tokens):
    for level, token in enumerate(tokens, 1):
        state = head.extend(Drafted(torch.full(state.shape[:2], token), state, level, None))
    return proposed(head, state)


def test_a_rejected_token_is_drafted_from_and_an_accepted_one_twice():
    head = head_of(candidates=2)
    absorbed(head, TEXT, liked={})
    liked = {0: [5, 4], 1: [30, 49], 2: [31, 32], 3: [33, 34], 4: [35, 36]}
    state = verified(head, TEXT, *NODES, liked, path=(0, 1))
    assert behind(head, state, 5) == [31, 32], "it was rejected"
    assert behind(head, state, 4)[:2] == [30, 49], "of two nodes the accepted one counts"
    assert behind(head, state, 3)[0] == 5
    # The accepted nodes are in the text as well, by the same logits.
    assert proposed(head, absorbed(head, [*TEXT, 4, 49, 4], start=4, liked={}))[:2] == [30, 49]
    assert behind(head, state, 8) == []


def test_more_tokens_that_match_go_before_later_ones():
    head = head_of(candidates=1, said=0, longest=2)
    absorbed(head, [6, 5, 2, 3], liked={1: [40]})
    state = verified(head, [6, 5, 2, 3], [3, 5], [-1, 0], {1: [41]})
    assert behind(head, state, 8, 5) == [41], "both match one token, and it is later"
    assert behind(head, state, 6, 5) == [40], "the text matches two"
    assert behind(head, state, 3, 5) == [41], "the tree does"


def test_what_is_learned_of_a_token_replaces_what_was():
    head = head_of(candidates=1, said=0)
    absorbed(head, TEXT, liked={})
    verified(head, TEXT, [3, 5], [-1, 0], {1: [40]})
    state = verified(head, [*TEXT, 49], [49, 5, 9], [-1, 0, -1], {1: [41], 2: [42]})
    assert behind(head, state, 5) == [41]
    assert behind(head, state, 9) == [], "padding is no node"


def test_a_free_slot_learns_nothing_and_none_learns_of_another():
    head = head_of(candidates=1, said=0, slots=2)
    absorbed(head, TEXT, slot=0, liked={})
    absorbed(head, TEXT, slot=1, liked={})
    state = verified(head, TEXT, [3, 5], [-1, 0], {1: [40]}, slots=2, free=(1,))
    below = head.extend(Drafted(torch.full((2, 1), 5), state, 1, None))
    first, second = head.logits(below)[:, 0]
    assert first.argmax() == 40
    assert second.tolist() == [0.0] * VOCAB


def test_the_first_tokens_of_a_text_are_matched_like_any():
    head = head_of(candidates=1, said=0, longest=3)
    state = verified(head, [3], [3, 5], [-1, 0], {0: [40], 1: [41]})
    assert behind(head, state, 3) == [40]
    assert behind(head, state, 3, 5) == [41]


# --- in a decoder ---------------------------------------------------------------------------------


@pytest.fixture
def spoiled(paged, poisoned, monkeypatch):
    """Rows are in blocks, and in those that no text has are NaN and numbers that are no tokens."""

    def spoil(decoder, blocks):
        with torch.inference_mode():
            for store in test_paging.stores(decoder):
                odd = torch.nan if store.is_floating_point() else torch.iinfo(store.dtype).min
                for block in blocks:
                    store[:, block * BLOCK : (block + 1) * BLOCK] = odd

    monkeypatch.setattr(test_paging, "spoil", spoil)


def some(count, temperature):
    return [
        SamplingParams(temperature=temperature, seed=n, max_new_tokens=30 - n, ignore_eos=True)
        for n in range(count)
    ]


def decoder(target, slots, attention="auto"):
    runtime = {"max_batch": slots}
    spec = DecoderSpec(head="recycling", tree=TREE, attention=attention, runtime=runtime)
    return Decoder.from_spec(spec, target=target)


@settings(max_examples=5)
@given(script=st.lists(test_sharing.ACTIONS, max_size=20))
@pytest.mark.parametrize("way", ["blocks", "captured"])
def test_each_says_what_it_says_alone_whatever_others_do(way, script, pair):
    def spec(**parts):
        return DecoderSpec(head="recycling", tree=TREE, **parts)

    one = Decoder.from_spec(spec(attention="sdpa", runtime={"max_batch": 1}), target=pair[0])

    def alone(number):
        return one.generate(*test_sharing.asked(number)).tokens

    with pytest.MonkeyPatch.context() as patch:
        made = test_sharing.made(way, spec, pair, patch)
        tickets = test_sharing.play(made, [("ask", 9), *script])
    test_sharing.check(made, tickets, alone)


@pytest.mark.usefixtures("spoiled")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_shared_prefixes_and_poisoned_blocks_change_no_answer(temperature, pair, monkeypatch):
    system = tiny_text(1, 3 * BLOCK, torch.Generator().manual_seed(5))[0].tolist()
    prompts = [[*system, 5, 6, 7], [*system, 9], [*system[: 2 * BLOCK], 40, 41], [8, 9]]
    params = some(4, temperature)
    alone = decoder(pair[0], 1, "sdpa")
    expected = [alone.generate(*one).tokens for one in zip(prompts, params, strict=True)]
    for slots in (1, 3):
        made = decoder(pair[0], slots)
        pieces = noted_pieces(made, monkeypatch)
        for _ in range(2):
            found = made.generate(prompts, params)
            assert [one.tokens for one in found] == expected
        assert any(piece.start for piece in pieces), "nothing was shared"
        # Nor is less accepted: what a shared block has is drafted from.
        taus = [one.stats.tau for one in found]
        wanted = [alone.generate(*one).stats.tau for one in zip(prompts, params, strict=True)]
        assert taus == wanted


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_request_that_is_given_up_leaves_nothing_behind(in_blocks, pair, request):
    if in_blocks:
        request.getfixturevalue("spoiled")
    prompts = tiny_text(3, 40, torch.Generator().manual_seed(7)).tolist()
    params = some(3, 1.0)
    expected = [
        decoder(pair[0], 1, "sdpa").generate(*one) for one in zip(prompts, params, strict=True)
    ]
    made = decoder(pair[0], 2)
    for left in (1, 4):
        stream = made.stream(prompts[:2], params[:2])
        for _ in range(left):
            next(stream)
        stream.close()
        assert not made.resolved.head._readers
        found = made.generate(prompts[::-1], params[::-1])[::-1]
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.stats.tau for one in found] == [one.stats.tau for one in expected]


class OwnEnd:
    @hookimpl
    def eagle_draft_heads(self):
        return [one for one in toys.Toys().eagle_draft_heads() if one.name == "own-end"]


def test_a_cascade_in_front_of_a_head_of_several_layers_gives_each_its_features(pair, monkeypatch):
    head = {"name": "cascade", "drafters": ["recycling", "own-end"]}  # of three hidden states
    tree = {"name": "offered", "of": {"name": "chain", "depth": 3}, "otherwise": "chain"}
    spec = DecoderSpec(features="auto", head=head, tree=tree)
    registry = Registry.discover()
    registry.register(OwnEnd(), "own-end", "tests")
    made = Decoder.from_spec(spec, registry=registry, target=pair[0])
    cascade, seen = made.resolved.head, {}
    for number, one in enumerate(cascade._heads):

        def absorb(committed, one=one, number=number):
            seen.setdefault(number, []).append(committed.features)
            return type(one).absorb(one, committed)

        monkeypatch.setattr(one, "absorb", absorb)
    plain = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=pair[0])
    text = [*range(3, 41, 2), 3, 5]
    found = made.generate(text, max_new_tokens=20, ignore_eos=True)
    assert found.tokens == plain.generate(text, max_new_tokens=20, ignore_eos=True).tokens
    for last, joined in zip(seen[0], seen[1], strict=True):
        # The last of the three is the last hidden state.
        assert torch.equal(last, joined[..., -last.shape[-1] :])
        assert joined.shape[-1] == 3 * last.shape[-1]


@pytest.mark.parametrize("architecture", ["llama-gqa", "gemma2", "gpt-oss"])
def test_the_last_hidden_state_that_a_cascade_names_is_the_lm_heads_input(architecture):
    target = tiny_target(architecture)
    with torch.inference_mode():
        out = target.model(torch.tensor([[3, 5, 7, 9]]), output_hidden_states=True)
        read = target.logits(out.hidden_states[target.info.layers])
    torch.testing.assert_close(read, out.logits)
