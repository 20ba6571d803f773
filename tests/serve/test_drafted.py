"""How many candidates were drafted, where every cycle may have a tree of another size."""

from __future__ import annotations

import threading

import pytest

from eagle import Decoder, Engine
from eagle.target import load_target
from tests.serve.conftest import serving

LENGTHS = (4, 2)
COUNTERS = ("eagle_verifications", "eagle_draft_tokens", "eagle_accepted_tokens")
PROMPTS = ("hello hello hello", "w5 w6 w7 w8 w5 w6", "said and said and done")


@pytest.fixture(scope="module")
def varying(home, spec):
    """A decoder that drafts chains of two lengths, or nothing."""
    made = spec(
        head={"name": "prompt-lookup", "shortest": 1},
        tree={
            "name": "offered",
            "of": [{"name": "chain", "depth": depth} for depth in LENGTHS],
            "otherwise": "none",
        },
        target={"model": str(home), "dtype": "float32"},
        runtime={"max_batch": 2},
    )
    return Decoder.from_spec(made, target=load_target(made.target))


@pytest.fixture
def chosen(varying, monkeypatch):
    """The candidates of each cycle, and how many requests it had."""
    tree, noted = varying.resolved.tree, []
    choose = tree.choose

    def seen(state):
        place = choose(state)
        noted.append((tree.alternatives[place].shape.nodes - 1, state.active))
        return place

    monkeypatch.setattr(tree, "choose", seen)
    return noted


def counters(site):
    lines = site.ask("GET", "/metrics").content.decode().splitlines()
    values = dict(line.split() for line in lines if line.startswith("eagle_") and "{" not in line)
    return {name: float(values[f"{name}_total"]) for name in COUNTERS}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_how_many_candidates_its_cycles_verified(varying, chosen, stream):
    with Engine(varying) as engine, serving(engine) as site:
        before = counters(site)
        fields = {"temperature": 0, "max_tokens": 60, "ignore_eos": True, "stream": stream}
        answer = site.complete(prompt=PROMPTS[0], **fields)
        after = counters(site)
    told = (answer.events[-1] if stream else answer.json)["metrics"]["speculative_decoding"]
    sizes = [size for size, _ in chosen]
    assert len(set(sizes)) > 1  # else it would be a tree of one size
    assert told["num_spec_steps"] == len(sizes)
    assert told["num_draft_tokens"] == sum(sizes)
    accepted = told["num_accepted_draft_tokens"]
    assert told["draft_acceptance_rate"] == pytest.approx(accepted / sum(sizes))
    assert told["num_spec_tokens"] == max(LENGTHS)
    assert len(told["acceptance_histogram"]) == max(LENGTHS) + 1
    grown = [after[name] - before[name] for name in COUNTERS]
    assert grown == [len(sizes), sum(sizes), accepted]


def test_answers_that_share_cycles_are_each_told_of_their_own(varying, chosen):
    with Engine(varying) as engine, serving(engine) as site:
        before, told = counters(site), []

        def ask(prompt):
            answer = site.complete(prompt=prompt, max_tokens=40, seed=3, ignore_eos=True)
            told.append(answer.json["metrics"]["speculative_decoding"])

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = counters(site)
    grown = [after[name] - before[name] for name in COUNTERS]
    kinds = ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens")
    assert grown == [sum(one[kind] for one in told) for kind in kinds]
    # A prompt that is still read has a slot, too, and no part in a cycle.
    assert 0 < grown[1] <= sum(size * active for size, active in chosen)
    assert len({size for size, _ in chosen}) > 1


def test_where_nothing_is_drafted_there_is_no_rate(home, spec):
    made = spec(head="none", tree="none", target={"model": str(home), "dtype": "float32"})
    plain = Decoder.from_spec(made, target=load_target(made.target))
    with Engine(plain) as engine, serving(engine) as site:
        told = site.complete(max_tokens=5, temperature=0, ignore_eos=True).json["metrics"]
        assert counters(site)["eagle_draft_tokens"] == 0
    assert told["speculative_decoding"] == {
        "mean_acceptance_length": 1.0,
        "acceptance_histogram": [4],
        "num_spec_steps": 4,
        "num_accepted_draft_tokens": 0,
        "num_spec_tokens": 0,
        "num_draft_tokens": 0,
        "draft_acceptance_rate": 0.0,
    }
