"""Trees that follow the batch: seeds that were given say the same, and all else is as likely."""

from __future__ import annotations

import pytest

from eagle import Decoder, Engine, SamplingParams
from eagle.plugin import Law, Topology
from eagle.testing.exact_decoder import target_distribution
from eagle_plugins.trees import narrowing
from eagle_plugins.trees.narrowing import NarrowingTree
from tests.exact.test_decoder_lossless import TOLERANCE, generated_distribution
from tests.exact.test_shared_noise import PROMPTS, RATES, drafting_with
from tests.exact.tiny import exact_decoder
from tests.runtime.test_runtime import Replays

PATIENCE = 60
SLOTS = 6
FREE = {"temperature": 1.0, "ignore_eos": True}
BOTH_LAWS = pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.TOP_K])


@pytest.fixture
def narrowed(spec, pair, monkeypatch):
    """Return a decoder of six slots, and what was seen and chosen in its cycles.

    Of its trees the first is for one slot, the second for two and three, the last for more.
    """
    monkeypatch.setattr(narrowing, "_NODES", (3, 2))
    monkeypatch.setattr(narrowing, "_WIDTHS", (2, 4))
    monkeypatch.setattr(narrowing, "_SLOTS", (2, 4))
    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Replays)

    def make(law):
        decoder = Decoder.from_spec(
            spec(attention="sdpa", runtime={"max_batch": SLOTS}), target=pair[0]
        )
        return decoder, drafting_with(
            NarrowingTree(Topology.from_branching([3, 2, 1]), law, RATES), decoder
        )

    return make


def width_tree(width: int) -> int:
    return 0 if width < 2 else 1 if width < 4 else 2


@BOTH_LAWS
@pytest.mark.parametrize("ahead", [False, True])
def test_seeds_say_the_same_among_others_without_one_who_come_and_go(narrowed, law, ahead):
    decoder, chosen = narrowed(law)
    asked = [SamplingParams(max_new_tokens=60 - 9 * n, seed=n, **FREE) for n in range(3)]
    alone = [decoder.generate(p, own).tokens for p, own in zip(PROMPTS, asked, strict=False)]
    assert {(seen.active, seen.seeded, number) for seen, number in chosen} == {(1, True, 2)}
    del chosen[:]
    decoder._runtime.graph = ahead  # as on a GPU, where cycles start ahead; nothing is captured
    with Engine(decoder) as engine:
        stays = engine.submit([11, 4], max_new_tokens=300, **FREE)
        events = iter(stays)
        for _ in range(4):
            next(events)
        seeded = [engine.submit(p, own) for p, own in zip(PROMPTS, asked, strict=False)]
        gone = engine.submit([8, 1], max_new_tokens=300, **FREE)
        next(iter(gone))
        assert gone.cancel()
        for number in range(6):
            engine.submit([30 + number], max_new_tokens=2 + number, **FREE).result(PATIENCE)
        assert [one.result(PATIENCE).tokens for one in seeded] == alone
        stays.cancel()
        engine.submit([7], max_new_tokens=9, **FREE).result(PATIENCE)
    assert {number for seen, number in chosen if seen.seeded} == {2}
    assert max(seen.active for seen, _ in chosen if seen.seeded) >= 4, "they shared nothing"
    assert {number for seen, number in chosen if not seen.seeded} >= {0}, "no tree was another"


@BOTH_LAWS
def test_without_a_seed_trees_follow_the_width_but_beside_one_that_was_given(narrowed, law):
    decoder, chosen = narrowed(law)
    decoder.generate(PROMPTS[0], max_new_tokens=20, **FREE)
    assert {number for _, number in chosen} == {0}
    del chosen[:]
    lengths, seeds = (40, 30, 12), (None, None, 3)
    several = [
        SamplingParams(max_new_tokens=new, seed=seed, **FREE)
        for new, seed in zip(lengths, seeds, strict=True)
    ]
    decoder.generate(PROMPTS[:3], several)
    found = {(seen.active, seen.seeded): number for seen, number in chosen}
    assert found == {(3, True): 2, (2, False): 1, (1, False): 0}
    assert {seen.slots for seen, _ in chosen} == {SLOTS}


@BOTH_LAWS
def test_a_greedy_request_with_a_seed_keeps_nobody_from_larger_trees(narrowed, law):
    decoder, chosen = narrowed(law)
    greedy = SamplingParams(max_new_tokens=30, seed=3, ignore_eos=True)
    decoder.generate(PROMPTS[:2], [greedy, SamplingParams(max_new_tokens=30, **FREE)])
    assert {seen.seeded for seen, _ in chosen} == {False}
    assert all(number == width_tree(seen.width) for seen, number in chosen)


@BOTH_LAWS
def test_trees_that_were_chosen_before_a_cycle_change_no_distribution(law, monkeypatch):
    monkeypatch.setattr(narrowing, "_NODES", (2, 2))
    decoder = exact_decoder(3, name="chain", depth=2)
    tree = NarrowingTree(Topology.from_paths([[0], [1]]), law, RATES)
    assert [one.shape.nodes for one in tree.alternatives] == [3, 2]
    choose = tree.choose

    def by_own_text(seen):
        # The most that a width may follow from: what the text itself has been given so far.
        width = 16 if seen.committed[0] is None else 1
        return choose(type(seen)(active=1, committed=seen.committed, width=width, sampled=True))

    tree.choose = by_own_text
    chosen = drafting_with(tree, decoder)
    prompt = [1, 2]
    (found,) = generated_distribution(decoder, [prompt], 3, 1, temperature=0.5)
    wanted = target_distribution(decoder, prompt, SamplingParams(temperature=0.5), tokens=3)
    assert found == pytest.approx(wanted, abs=TOLERANCE)
    assert {number for _, number in chosen} == {0, 1}
