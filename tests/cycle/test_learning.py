"""What a head is told of verifications, and that what it learns is a request's own."""

from __future__ import annotations

import pytest
import torch

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.errors import PluginError
from eagle.plugin import hookimpl
from eagle.plugin.roles import Strategy, StrategyConfig
from eagle_plugins.attention.auto import Auto
from tests.contracts import toys
from tests.runtime.test_runtime import Replays

PROMPTS = [[3, 5, 7, 9, 11], [20, 22], [40, 43, 46, 49, 52, 55, 58], [9, 3, 9]]
TREE = {"name": "static", "tree": [[0], [1], [1, 0], [1, 1]]}
CHAIN = {"name": "chain", "depth": 2}


class Paged(toys.Recalls):
    """May be moved: it is no row of the text that it remembers, and the loop sees to the rest."""

    paged = True

    def allocate(self, slots, rows, pages=None):
        super().allocate(slots, rows)


class Listening(toys.Recalls):
    """Keeps what it is told."""

    def __init__(self, config, context):
        super().__init__(config, context)
        self.heard = []

    def absorb(self, committed):
        self.heard.append(committed)
        return super().absorb(committed)


class Wide(toys.Recalls):
    @property
    def verified_memory(self):
        return (self.likeliest[0],)


class Kinds:
    @hookimpl
    def eagle_draft_heads(self):
        kinds = {"paged": Paged, "listening": Listening, "wide": Wide}
        return [Strategy(name, StrategyConfig, kind, name) for name, kind in kinds.items()]


@pytest.fixture
def decoder(pair):
    registry = toys.registry()
    registry.register(Kinds(), "kinds", "tests")

    def make(head="recalls", tree=TREE, **runtime):
        spec = DecoderSpec(head=head, tree=tree, runtime=runtime)
        return Decoder.from_spec(spec, registry=registry, target=pair[0])

    return make


def some(temperature):
    return [
        SamplingParams(temperature=temperature, seed=n, max_new_tokens=14 + 6 * n, ignore_eos=True)
        for n in range(len(PROMPTS))
    ]


def told(found):
    """Return what must be the same: what is said, and how much of it was drafted rightly."""
    return [(one.tokens, one.stats.accepted_per_cycle) for one in found]


@pytest.fixture
def alone(decoder):
    def answers(temperature, head="recalls"):
        made = [decoder(head, max_batch=1) for _ in PROMPTS]
        each = zip(made, PROMPTS, some(temperature), strict=True)
        return told([own.generate(*one) for own, *one in each])

    return answers


def test_a_head_is_told_the_targets_logits_at_every_node(decoder):
    made = decoder("listening", max_batch=1)
    text = list(PROMPTS[0])
    found = made.generate(text, some(1.0)[1])
    head, entries = made.resolved.head, []
    for one in head.heard:
        if one.verified is None:
            assert not entries, "a cycle told nothing"
        else:
            entries.append(one)
    assert len(entries) >= len(found.stats.accepted_per_cycle)
    text.append(found.tokens[0])
    rejected = padding = 0
    for one, count in zip(entries, found.stats.accepted_per_cycle, strict=False):
        seen, gain = one.verified, int(one.count)
        nodes = seen.tree.tokens[0].tolist()
        path = seen.path[0, :gain].tolist()
        for node, parent in enumerate(seen.tree.parents[0].tolist()):
            real = node == 0 or parent >= 0
            assert bool(seen.real[0, node]) == real
            padding += not real
            line, up = [], node
            while real and up > 0:
                line, up = [nodes[up], *line], int(seen.tree.parents[0, up])
            if real:
                ids = torch.tensor([[*text, *line]])
                with torch.inference_mode(), made.target.stock() as model:
                    wanted = model(input_ids=ids, use_cache=False).logits[0, -1]
                torch.testing.assert_close(seen.logits[0, node], wanted, atol=1e-4, rtol=1e-4)
                rejected += node not in path
        assert [nodes[node] for node in path] == one.own[0, :gain].tolist()
        text += one.tokens[0, :count].tolist()
    assert text[len(PROMPTS[0]) :][: len(found.tokens)] == list(found.tokens)
    assert rejected > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("slots", [1, 3])
def test_what_is_learned_is_a_requests_own(slots, temperature, decoder, alone):
    expected = alone(temperature)
    assert any(max(counts) > 1 for _, counts in expected), "nothing was ever learned"
    made = decoder(max_batch=slots)
    for order in (1, -1):
        found = made.generate(PROMPTS[::order], some(temperature)[::order])
        assert told(found[::order]) == expected


def test_what_is_learned_is_moved_with_its_text(decoder, alone, monkeypatch):
    monkeypatch.setattr(Auto, "paged", True)
    expected = alone(1.0, "paged")
    made, moved = decoder("paged", max_batch=4), []
    move = type(made._cycle).move
    monkeypatch.setattr(
        made._cycle, "move", lambda *where: (moved.append(where), move(made._cycle, *where))
    )
    assert told(made.generate(PROMPTS, some(1.0))) == expected
    assert moved, "no text was moved"


class Tries(Replays):
    """Runs what is captured before, as CUDA graphs do, and puts back what it is told of."""

    def capture(self, key, work, carried):
        kept = [tensor.clone() for tensor in carried]
        for _ in range(3):
            work()
            for tensor, old in zip(carried, kept, strict=True):
                tensor.copy_(old)
        super().capture(key, work, carried)


def test_a_cycle_that_is_only_tried_teaches_nothing(decoder, alone, monkeypatch):
    expected = alone(1.0)
    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Tries)
    made = decoder(max_batch=4)
    made._runtime.graph = True
    assert told(made.generate(PROMPTS, some(1.0))) == expected


def test_memory_of_a_spoilt_slot_is_cleared(decoder):
    cycle = decoder()._cycle
    with torch.inference_mode():
        slots = cycle.allocate(2, 64)
        slots.memory[0].fill_(7)
        cycle.clear(slots, 1)
    assert slots.memory[0].eq(7).all(1).tolist() == [True, False]
    assert not slots.memory[0][1].any()


def test_memory_that_is_not_by_slots_is_named(decoder):
    made = decoder("wide")
    with pytest.raises(PluginError, match=r"verified_memory has the shape \[\d+\], not \["):
        made.generate(PROMPTS[0], max_new_tokens=4)


def test_others_are_told_nothing(decoder):
    made, heard = decoder("mtp"), []
    absorb = made.resolved.head.absorb
    made.resolved.head.absorb = lambda committed: (heard.append(committed), absorb(committed))[1]
    made.generate(PROMPTS[0], max_new_tokens=8, ignore_eos=True)
    assert len(heard) > 2
    assert all(one.verified is None for one in heard)
