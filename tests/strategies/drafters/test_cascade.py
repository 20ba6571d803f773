"""Who drafts in a cascade, and which drafters cannot be put together."""

from __future__ import annotations

import pytest

from eagle import Decoder, DecoderSpec
from eagle.errors import IncompatibleError, SpecError
from eagle.plugin import BuildContext, default_registry
from eagle.spec import resolve

OFFERED = {"name": "offered", "of": {"name": "chain", "depth": 4}, "otherwise": "chain"}
REPEATING = [*range(3, 25, 2), 3, 5]  # of which the tiny target goes on counting


@pytest.fixture
def cascade(pair):
    eagle = {"name": "eagle", "weights": str(pair[1])}
    head = {"name": "cascade", "drafters": [{"name": "prompt-lookup"}, eagle]}
    return Decoder.from_spec(DecoderSpec(head=head, tree=OFFERED), target=pair[0])


def test_the_last_drafter_rests_where_the_first_is_sure(cascade, monkeypatch):
    last, passes = cascade.resolved.head._last, []
    extend = last.extend

    def counting(drafted):
        passes.append(drafted.level)
        return extend(drafted)

    monkeypatch.setattr(last, "extend", counting)
    chosen = []
    choose = cascade.resolved.tree.choose
    monkeypatch.setattr(
        cascade.resolved.tree, "choose", lambda seen: chosen.append(choose(seen)) or chosen[-1]
    )
    cascade.generate(REPEATING, max_new_tokens=30, ignore_eos=True)
    assert {0, 1} == set(chosen), "one of the two never drafted"
    assert passes == [1, 2, 3] * chosen.count(0)


def test_each_slot_has_a_drafter_of_its_own(cascade):
    head = cascade.resolved.head
    head.allocate(2, 32)
    head.begin_request(0, REPEATING)
    head.begin_request(1, [20, 22])
    offered = head.offer(2)
    assert offered[0] > 0 == offered[1]
    assert head._chosen.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (["eagle", "suffix"], "'eagle' never says what it is sure of, so none behind it"),
        (["suffix"], "drafters"),
        (["suffix", "eagel"], "no draft head is named 'eagel'"),
    ],
)
def test_drafters_that_cannot_be_put_together_are_named(head, message, pair):
    spec = DecoderSpec(head={"name": "cascade", "drafters": head}, tree="chain")
    with pytest.raises(SpecError, match=message):
        resolve(spec, default_registry(), BuildContext(pair[0].info))


def test_a_tree_of_what_is_offered_is_refused_with_a_head_that_offers_nothing(pair):
    head = {"name": "eagle", "weights": str(pair[1])}
    with pytest.raises(IncompatibleError, match=r"draft head 'eagle' .* says nothing of that"):
        resolve(DecoderSpec(head=head, tree="offered"), default_registry())


def test_a_varying_tree_within_another_is_refused():
    tree = {"name": "offered", "otherwise": "offered"}
    with pytest.raises(SpecError, match="'offered' within 'offered' is of varying shape itself"):
        resolve(DecoderSpec(head="suffix", tree=tree), default_registry())


def test_only_drafters_that_learn_are_told_what_was_verified(pair):
    eagle = {"name": "eagle", "weights": str(pair[1])}
    head = {"name": "cascade", "drafters": ["recycling", eagle]}
    decoder = Decoder.from_spec(DecoderSpec(head=head, tree="chain"), target=pair[0])
    told = [[] for _ in decoder.resolved.head._heads]
    for own, heard in zip(decoder.resolved.head._heads, told, strict=True):

        def absorb(committed, absorb=own.absorb, heard=heard):
            heard.append(committed.verified is not None)
            return absorb(committed)

        own.absorb = absorb
    decoder.generate([3, 5, 7], max_new_tokens=8, ignore_eos=True)
    assert any(told[0])
    assert len(told[1]) == len(told[0])
    assert not any(told[1])
