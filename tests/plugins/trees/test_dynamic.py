"""Dynamic trees against a naive twin, and what the loop relies on: shapes, order, no host reads."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eagle import Decoder
from eagle.errors import IncompatibleError
from eagle.plugin.draws import UniformDraws
from eagle.plugin.roles import BuildContext, Law, TargetInfo
from eagle.plugin.sampling import Sampling, SamplingParams
from eagle.plugin.tree import TreeShape, ancestor_mask
from eagle.testing import check_tree_builder
from eagle_plugins.trees.dynamic import DYNAMIC, DynamicConfig, DynamicTree

FIELDS = ("tokens", "parents", "depths", "ranks", "ancestors")
SMALL = DynamicConfig(nodes=9, depth=4, top_k=3)


class TextDrafter:
    """Draft logits that depend on a slot and on the text drafted in it, and on nothing else.

    Args:
        logits: from a slot and a text to draft logits ``[V]``.
        slots: which slots.
        temperature: of them all.
    """

    def __init__(self, logits, slots=(0,), temperature=0.0):
        params = [SamplingParams(temperature=temperature)] * len(slots)
        self.sampling = Sampling.of(params, "cpu")
        self.root = torch.arange(7, 7 + len(slots))
        self._logits, self._slots = logits, slots
        self._texts = [[] for _ in slots]

    def begin(self):
        return torch.stack([self._logits(slot, ()) for slot in self._slots])[:, None]

    def expand(self, tokens, parents):
        rows = []
        for slot, texts, new, above in zip(
            self._slots, self._texts, tokens.tolist(), parents.tolist(), strict=True
        ):
            assert all(-1 <= parent < len(texts) for parent in above)
            texts += [
                ((*texts[parent], token) if parent >= 0 else (token,))
                for token, parent in zip(new, above, strict=True)
            ]
            rows.append(torch.stack([self._logits(slot, text) for text in texts[-len(new) :]]))
        return torch.stack(rows)


def build(config, logits, slots=(0,), temperature=0.0):
    drafter = TextDrafter(logits, slots, temperature)
    return DynamicTree(config).build(drafter, UniformDraws(torch.empty(len(slots), 0)))


def spread(vocab, seed, options=None, dtype=torch.float64):
    """Return random logits by slot and text; of a few values, many are equal."""

    def logits(slot, text):
        chance = Random(f"{seed} {slot} {text}")
        row = [chance.choice(options) if options else chance.gauss(0, 3) for _ in range(vocab)]
        row[chance.randrange(vocab)] = 1.0  # not all may be impossible
        return torch.tensor(row, dtype=dtype)

    return logits


# --- the twin -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Candidate:
    text: tuple[int, ...]
    value: float
    rank: int
    parent: Candidate | None


def naive(config, logits, slot):
    """Return the nodes kept, the root first: EAGLE-2 by the book, one candidate at a time."""
    root = Candidate((), 0.0, 0, None)
    beam, candidates = [root], []
    for _ in range(config.depth):
        level = []
        for node in beam:
            row = logits(slot, node.text)
            logprobs = row.log_softmax(-1).tolist()
            for rank, token in enumerate(row.topk(config.top_k).indices.tolist()):
                value = node.value + logprobs[token]
                level.append(Candidate((*node.text, token), value, rank, node))
        # Of equal ones, nlargest takes the first.
        beam = heapq.nlargest(config.top_k, level, key=lambda node: node.value)
        candidates += level
    kept = set(heapq.nlargest(config.nodes, candidates, key=lambda node: node.value))
    return [root, *(node for node in candidates if node in kept)]


@st.composite
def cases(draw):
    top_k, depth = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    most = top_k + (depth - 1) * top_k**2
    config = DynamicConfig(
        nodes=draw(st.integers(max(top_k, depth), most)), depth=depth, top_k=top_k
    )
    options = draw(st.sampled_from([None, (0.0, 1.0), (-math.inf, 0.0, 1.0), (-40.0, 1.0)]))
    vocab = draw(st.integers(top_k, 6))
    return config, spread(vocab, draw(st.integers(0, 2**16)), options), draw(st.integers(1, 3))


@given(cases())
def test_agrees_with_its_naive_twin_in_every_slot(case):
    config, logits, slots = case
    tree = build(config, logits, range(slots))
    assert tree.law is Law.TOP_K
    assert (tree.draft_probs, tree.draft_rows, tree.sampled) == (None, None, None)
    for slot in range(slots):
        kept = naive(config, logits, slot)
        place = {node: number for number, node in enumerate(kept)}
        # A parent that is not kept has no place: the twin proves that there is none such.
        parents = [-1, *(place[node.parent] for node in kept[1:])]
        assert tree.tokens[slot].tolist() == [7 + slot, *(node.text[-1] for node in kept[1:])]
        assert tree.parents[slot].tolist() == parents
        assert tree.depths[slot].tolist() == [len(node.text) for node in kept]
        assert tree.ranks[slot].tolist() == [node.rank for node in kept]
        assert torch.equal(tree.ancestors[slot], ancestor_mask(torch.tensor(parents), len(kept)))


@given(cases())
def test_ranks_are_places_among_the_siblings_that_are_kept(case):
    config, logits, slots = case
    tree = build(config, logits, range(slots))
    for parents, ranks in zip(tree.parents.tolist(), tree.ranks.tolist(), strict=True):
        for parent in set(parents[1:]):
            own = [rank for rank, above in zip(ranks, parents, strict=True) if above == parent]
            assert own == list(range(len(own)))


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nodes": 4, "depth": 4, "top_k": 1},
        {"nodes": 5, "depth": 1, "top_k": 5},
        {"nodes": 21, "depth": 3, "top_k": 3},
        {"nodes": 3, "depth": 3, "top_k": 3},
    ],
    ids=str,
)
def test_keeps_the_contract_of_tree_builders(settings):
    check_tree_builder(DynamicTree(DynamicConfig(**settings)), cycles=2)


def test_grows_deep_where_the_head_is_sure_and_wide_where_it_is_not():
    def logits(slot, text):
        return torch.linspace(0, 50.0 if slot == 0 else 0.1, 9)

    tree = build(DynamicConfig(nodes=6, depth=6, top_k=4), logits, range(2))
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 3, 4, 5], [-1, 0, 0, 0, 0, 1, 1]]
    assert tree.depths.amax(1).tolist() == [6, 2]


def test_a_slot_is_drafted_as_alone():
    logits = spread(8, 5, dtype=torch.float32)
    together = build(SMALL, logits, range(3))
    for slot in range(3):
        alone = build(SMALL, logits, [slot])
        for name in FIELDS[1:]:
            assert torch.equal(getattr(together, name)[slot], getattr(alone, name)[0])
        assert torch.equal(together.tokens[slot, 1:], alone.tokens[0, 1:])


@pytest.mark.parametrize(
    ("nodes", "parents"),
    [
        # One text is certain: all its nodes have value 0, as their parents do.
        (3, [-1, 0, 1, 2]),
        # What is impossible comes next, level by level.
        (4, [-1, 0, 0, 1, 3]),
        (5, [-1, 0, 0, 1, 1, 3]),
        (6, [-1, 0, 0, 1, 1, 2, 3]),
    ],
)
def test_of_equal_values_the_lower_level_and_the_earlier_is_kept(nodes, parents):
    def certain(slot, text):
        return torch.tensor([-torch.inf, 0.0, -torch.inf])

    tree = build(DynamicConfig(nodes=nodes, depth=3, top_k=2), certain)
    assert tree.parents[0].tolist() == parents


def test_the_temperature_does_not_change_the_tree():
    cold, warm = (build(SMALL, spread(8, 2), [0, 1], temperature) for temperature in (0.0, 0.7))
    for name in FIELDS:
        assert torch.equal(getattr(cold, name), getattr(warm, name))


def test_values_of_half_precision_logits_are_not_rounded_to_it():
    def logits(slot, text):
        # Different ones, as topk may take equal ones in an order that depends on the data type.
        row = [level / 16 for level in Random(f"{slot} {text}").sample(range(64), 8)]
        return torch.tensor(row, dtype=torch.bfloat16)

    config = DynamicConfig(nodes=40, depth=8, top_k=3)
    found = build(config, logits, range(10))
    expected = build(config, lambda slot, text: logits(slot, text).float(), range(10))
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_nan_from_the_head_leaves_a_tree_and_the_other_slots_alone(depth):
    healthy = spread(6, 11, dtype=torch.float32)

    def logits(slot, text):
        broken = slot == 0 and len(text) == depth
        return torch.full((6,), torch.nan) if broken else healthy(slot, text)

    tree = build(SMALL, logits, range(2))
    expected = build(SMALL, healthy, range(2))
    for name in FIELDS:
        assert torch.equal(getattr(tree, name)[1], getattr(expected, name)[1])
    assert bool(((tree.tokens[0, 1:] >= 0) & (tree.tokens[0, 1:] < 6)).all())
    parents, depths = tree.parents[0], tree.depths[0]
    assert bool((parents[1:] < torch.arange(1, 10)).all())
    assert torch.equal(depths[1:], depths[parents[1:]] + 1)


def test_a_broken_state_among_sound_ones_keeps_the_tree_connected():
    healthy = spread(6, 4, dtype=torch.float32)
    least = int(healthy(0, ()).topk(3).indices[2])

    def logits(slot, text):
        return torch.full((6,), torch.nan) if text == (least,) else healthy(slot, text)

    tree = build(SMALL, logits)
    parents, depths = tree.parents[0], tree.depths[0]
    assert torch.equal(depths[1:], depths[parents[1:]] + 1)


# --- on a device ----------------------------------------------------------------------------------


class NodeDrafter:
    """Draft logits by token, all in tensors; runs on any device and under `torch.compile`."""

    def __init__(self, root, table):
        self.root, self.table = root, table

    def begin(self):
        return self.table[self.root][:, None]

    def expand(self, tokens, parents):
        return self.table[tokens]


def test_nothing_is_read_on_the_host():
    # A meta tensor has a shape and no content: reading a value of it raises.
    root = torch.zeros(2, dtype=torch.int64, device="meta")
    tree = DynamicTree(SMALL).build(NodeDrafter(root, torch.zeros(5, 5, device="meta")), None)
    assert tree.tokens.shape == (2, 10)
    assert tree.ancestors.shape == (2, 10, 10)


def test_is_traced_as_one_graph_without_varying_shapes():
    builder = DynamicTree(SMALL)
    table = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))

    def parts(root):
        tree = builder.build(NodeDrafter(root, table), None)
        return [getattr(tree, name) for name in FIELDS]

    parts(torch.zeros(2, dtype=torch.int64))  # index tensors are made once, before
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    traced = torch.compile(parts, fullgraph=True, dynamic=False, backend=backend)
    shapes = set()
    for first in range(5):
        root = torch.tensor([first, first + 9])
        found, expected = traced(root), parts(root)
        assert all(map(torch.equal, found, expected))
        shapes |= {tuple(row) for row in found[1].tolist()}
    assert len(graphs) == 1, "it was traced again"
    assert len(shapes) > 3, "all trees had one topology, so little was tested"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_graph_drafts_what_the_cpu_drafts():
    builder = DynamicTree(DynamicConfig())
    table = torch.randn(50, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root, on_device = torch.zeros(3, dtype=torch.int64, device="cuda"), table.cuda()
    builder.build(NodeDrafter(root, on_device), None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tree = builder.build(NodeDrafter(root, on_device), None)
    for first in range(0, 45, 3):
        root.copy_(torch.arange(first, first + 3))
        graph.replay()
        expected = builder.build(NodeDrafter(root.cpu(), table), None)
        for name in FIELDS:
            assert torch.equal(getattr(tree, name).cpu(), getattr(expected, name))


# --- settings -------------------------------------------------------------------------------------


def test_declares_what_it_drafts():
    builder = DYNAMIC.build(DynamicConfig(), BuildContext())
    assert builder.shape == TreeShape(nodes=61, depth=6, siblings=10, expansions=50)
    assert (builder.laws, builder.uniforms) == ({Law.TOP_K}, 0)
    assert builder.capturable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"nodes": 69, "depth": 5, "top_k": 4},
            "nodes is 69, but depth 5 and top_k 4 draft only 68 candidates: lower nodes, or raise",
        ),
        ({"nodes": 5, "depth": 6, "top_k": 4}, "nodes is 5, so no tree has more than 5 levels"),
        ({"nodes": 5, "depth": 2, "top_k": 6}, "depth 2 and top_k 6 would draft what is never"),
        ({"nodes": 500, "depth": 300}, "extend 2990 nodes in every cycle; at most 1024"),
        ({"nodes": 0}, "greater than or equal to 1"),
        ({"nodes": 1024}, "less than 1024"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"nodes": 60.5}, "valid integer"),
        ({"depth": True}, "valid integer"),
        ({"topk": 4}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DynamicConfig(**settings)


def test_a_vocabulary_smaller_than_top_k_is_refused():
    config = DynamicConfig(nodes=8, depth=2, top_k=6)
    target = TargetInfo("tiny", hidden_size=8, vocab_size=5, layers=1, max_positions=64)
    message = r"tree\.top_k is 6, but the target's vocabulary has only 5 tokens"
    with pytest.raises(IncompatibleError, match=message):
        DYNAMIC.build(config, BuildContext(target=target))
    with pytest.raises(IncompatibleError, match=message):
        build(config, spread(5, 0))
    assert build(config, spread(6, 0)).tokens.shape == (1, 9)


def test_a_decoder_says_what_it_says_without_drafting(spec, pair):
    prompts = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43]]

    def answers(**parts):
        decoder = Decoder.from_spec(spec(**parts), target=pair[0])
        return decoder.generate(prompts, max_new_tokens=50, ignore_eos=True)

    plain = answers(head="none", tree="none")
    dynamic = answers(tree={"name": "dynamic", "nodes": 25, "depth": 6, "top_k": 6})
    static = answers(tree={"name": "static", "tree": "reference-25"})
    assert [result.tokens for result in dynamic] == [result.tokens for result in plain]
    cycles = [sum(result.stats.cycles for result in found) for found in (dynamic, static)]
    assert cycles[0] <= cycles[1], "as many nodes in fixed places were accepted more often"
