"""What holds of all drafters that look text up: exact, alike in a batch, free of host reads."""

from __future__ import annotations

import pytest
import torch

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.plugin import Sampling, UniformDraws
from eagle.testing import assert_capturable, assert_decoder_lossless, check_draft_head
from tests.exact.tiny import PROMPTS, _pair

HEADS = {
    "prompt-lookup": {"name": "prompt-lookup", "shortest": 1},
    "trie": {"name": "prompt-lookup", "shortest": 1, "continuations": 3},
    "suffix": {"name": "suffix", "shortest": 1},
    "recycling": {"name": "recycling", "candidates": 3, "longest": 2},
    "paper": {"name": "recycling", "candidates": 4, "longest": 1, "said": 0},
    "cascade": {"name": "cascade", "drafters": [{"name": "prompt-lookup", "sure": 0.5}, "eagle"]},
    "recycling-cascade": {"name": "cascade", "drafters": ["recycling", "eagle"]},
}
CHAIN = {"name": "chain", "depth": 2}
FORK = {"name": "static", "tree": [[0], [1], [1, 0]]}
OFFERED = {"name": "offered", "of": CHAIN, "otherwise": {"name": "static", "branching": [2]}}
REPEATING = [*range(3, 41, 2), 3, 5]  # of which the tiny target goes on counting


def head_of(name, weights):
    head = HEADS[name]
    if name.endswith("cascade"):
        first, last = head["drafters"]
        return {**head, "drafters": [first, {"name": last, "weights": str(weights)}]}
    return head


@pytest.fixture
def decoder(pair):
    def make(name, tree, **runtime):
        spec = DecoderSpec(head=head_of(name, pair[1]), tree=tree, runtime=runtime)
        return Decoder.from_spec(spec, target=pair[0])

    return make


@pytest.mark.parametrize("name", HEADS)
def test_the_contract_of_a_head_is_kept(name, decoder, pair):
    head = decoder(name, CHAIN).resolved.head
    check_draft_head(head, pair[0], first_token=not name.endswith("cascade"))


@pytest.mark.parametrize(
    ("name", "tree"), [("trie", FORK), *((name, OFFERED) for name in HEADS if name != "trie")]
)
def test_what_is_drawn_has_exactly_the_targets_distribution(name, tree):
    target, weights = _pair(4, "cpu")
    spec = DecoderSpec(head=head_of(name, weights.name), tree=tree, runtime={"max_batch": 64})
    proved = Decoder.from_spec(spec, target=target)
    params = SamplingParams(temperature=1.0)
    assert_decoder_lossless(proved, PROMPTS, params, tokens=3, tolerance=1e-12)


@pytest.mark.parametrize("tree", [FORK, OFFERED], ids=["fork", "offered"])
@pytest.mark.parametrize("name", HEADS)
def test_greedy_text_is_the_targets_own_alone_and_in_a_batch(name, tree, decoder, pair):
    prompts = [REPEATING, [20, 22], [40, 43, 46, 40, 43]]
    plain = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=pair[0])
    wanted = [one.tokens for one in plain.generate(prompts, max_new_tokens=24, ignore_eos=True)]
    drafting = decoder(name, tree)
    for size in (1, 3):
        several = decoder(name, tree, max_batch=size)
        found = several.generate(prompts, max_new_tokens=24, ignore_eos=True)
        assert [one.tokens for one in found] == wanted
    alone = drafting.generate(REPEATING, max_new_tokens=24, ignore_eos=True)
    assert alone.tokens == wanted[0]
    assert alone.stats.tau > 1.2, "nothing was looked up"


@pytest.mark.parametrize("name", HEADS)
def test_sampled_text_does_not_depend_on_its_neighbours(name, decoder):
    prompts = [REPEATING, [20, 22], [40, 43, 46, 40, 43]]
    params = [
        SamplingParams(temperature=0.8, seed=seed, max_new_tokens=16, ignore_eos=True)
        for seed in range(3)
    ]
    alone = decoder(name, FORK, max_batch=1).generate(prompts, params)
    beside = decoder(name, FORK, max_batch=3).generate(prompts, params)
    assert [one.tokens for one in alone] == [one.tokens for one in beside]


@pytest.mark.parametrize("name", HEADS)
def test_a_cycle_reads_nothing_on_the_host(name, decoder):
    made = decoder(name, OFFERED)
    cycle = made._cycle
    with torch.inference_mode():
        slots = cycle.allocate(2, 64)
        sampling = Sampling.of([SamplingParams(temperature=1.0, seed=1)] * 2, "cpu")
        for slot in range(2):
            made.resolved.head.begin_request(slot, REPEATING)
            one = Sampling.of([SamplingParams(temperature=1.0)], "cpu")
            cycle.prefill(slots, slot, REPEATING, one, torch.zeros(1, 1, dtype=torch.float64))
        cycle.draws = UniformDraws
        for number in range(len(cycle.trees)):
            cycle.use(number)
            assert_capturable(lambda: cycle.run(slots, sampling, cycle.span(40)))
