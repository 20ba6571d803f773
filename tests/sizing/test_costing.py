"""The costs of a cycle, measured on the tiny pair: they come out, and nothing stays changed."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch

from eagle.decoding.decoder import Decoder
from eagle.decoding.resolving import resolve_for
from eagle.plugin.registry import default_registry
from eagle.plugin.tree import ancestor_mask
from eagle.runtime.runtime import Runtime
from eagle.sizing.costing import _Combs, bushy_tree, measure_costs
from eagle.testing import check_tree_builder

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def measure(spec, pair, monkeypatch):
    """Measure the costs of a spec; returns them, what was told, and the slots that were used."""
    used = []
    allocate = Runtime.allocate

    def watched(self, slots, rows):
        used.append(allocate(self, slots, rows))
        return used[-1]

    monkeypatch.setattr(Runtime, "allocate", watched)

    def run(**changes):
        resolved = resolve_for(spec(**changes), default_registry(), pair[0])
        resolved.head.load(pair[0], resolved.attention)
        told = []
        costs = measure_costs(resolved, pair[0], told.append)
        (slots,) = used
        return costs, told, slots

    return run


def test_every_part_of_a_cycle_takes_some_time(measure, pair):
    costs, told, _ = measure()
    assert costs.context == 256, "half of what the target holds"
    assert [size for size, _ in costs.verify.points] == [1, 4, 8, 16, 26, 40, 61]
    assert [size for size, _ in costs.level.points] == [1, 4, 10]
    for part in (costs.verify(1), costs.begin, costs.level(1), costs.rest):
        assert 0 < part < 1000, "milliseconds"
    assert all(a <= b for (_, a), (_, b) in pairwise(costs.verify.points))
    assert told[0] == "reading some text"
    assert "timing the verification of 26 of 61 nodes" in told


def test_nothing_is_committed_meanwhile(measure):
    costs, _, slots = measure()
    assert slots.lengths.tolist() == [costs.context]
    assert slots.active.tolist() == [False]
    assert slots.outcome[0, 0] == 0, "tokens of the last cycle"


def test_a_short_decoder_is_measured_with_what_it_holds(measure):
    costs, _, _ = measure(runtime={"max_length": 20})
    assert costs.context == 10
    assert [size for size, _ in costs.verify.points] == [1, 4, 8]


def test_a_decoder_of_one_token_is_measured_too(measure):
    costs, _, _ = measure(runtime={"max_length": 1})
    assert (costs.context, costs.verify.largest) == (1, 1)


def test_where_phases_are_compiled_fewer_sizes_are(measure, monkeypatch):
    calls = []

    def compile(phase, **options):
        calls.append(phase.__name__)
        return phase

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("eagle.runtime.runtime._AHEAD", ())  # as on a GPU
    costs, _, _ = measure(runtime={"compile": True})
    # The pass of one slot, and what each layer of a pass over several is.
    assert sorted(calls) == ["_layer", "accept", "commit", "draft", "verify"]
    assert [size for size, _ in costs.verify.points] == [1, 8, 26, 61]
    assert [size for size, _ in costs.level.points] == [1, 10]


def test_the_head_can_be_used_afterwards(spec, pair):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    generate = functools.partial(decoder.generate, PROMPT, max_new_tokens=24, ignore_eos=True)
    expected = generate()
    measure_costs(decoder.resolved, pair[0], lambda what: None)
    other = Decoder(decoder.resolved, pair[0])
    found = other.generate(PROMPT, max_new_tokens=24, ignore_eos=True)
    assert found.tokens == expected.tokens
    assert found.stats.accepted_per_cycle == expected.stats.accepted_per_cycle


@pytest.mark.parametrize("nodes", [1, 2, 5, 6, 21, 61])
def test_a_bushy_tree_is_one(nodes):
    tree = bushy_tree(torch.arange(nodes))
    assert tree.tokens.shape == tree.parents.shape == (1, nodes)
    parents = tree.parents[0].tolist()
    assert parents[0] == -1
    assert all(0 <= parent < node for node, parent in enumerate(parents[1:], start=1))
    assert max((parents.count(node) for node in range(nodes)), default=0) <= 4
    assert torch.equal(tree.ancestors, ancestor_mask(tree.parents, nodes))
    for node, parent in enumerate(parents[1:], start=1):
        assert tree.depths[0, node] == tree.depths[0, parent] + 1
    siblings = [(p, int(r)) for p, r in zip(parents[1:], tree.ranks[0, 1:], strict=True)]
    assert len(set(siblings)) == nodes - 1


@pytest.mark.parametrize(("width", "levels"), [(1, 1), (1, 4), (3, 1), (4, 4), (10, 3)])
def test_chains_side_by_side_keep_the_contract_of_trees(width, levels):
    combs = _Combs(width, levels)
    check_tree_builder(combs)
    assert combs.shape.nodes == 1 + width * levels
