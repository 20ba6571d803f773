"""Drawing a level by kernels against PyTorch: interpreted, or compiled on CUDA."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin import draws as seam
from eagle.plugin.blocks import drawing
from eagle.plugin.blocks.indices import TreeIndex
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.draws import UniformDraws
from eagle.plugin.sampling import Sampling, TargetProbs
from eagle.plugin.tree import TreeShape
from eagle.testing import RandomDrafter
from eagle_plugins.acceptance import deciding
from eagle_plugins.acceptance.speculative import SpeculativeRule
from tests.interpreted import DEVICE, move, needs_triton, quick, quiet

__all__ = ["quick"]
pytestmark = [needs_triton, quiet]

TOPOLOGIES = [
    Topology.from_paths([[0], [1], [2], [0, 0], [0, 1], [2, 0], [2, 0, 0]]),
    Topology.from_paths([[0], [1], [1, 0], [1, 1], [1, 2], [1, 2, 0]]),
    Topology.from_branching([4, 2]),
    Topology.from_branching([1, 1]),
]
DOUBLE = torch.float64


def sampling_at(temperatures, min_p=None, filtered=False):
    slots = len(temperatures)
    return Sampling(
        temperature=torch.tensor(temperatures),
        top_k=torch.zeros(slots, dtype=torch.int64),
        top_p=torch.ones(slots),
        min_p=torch.tensor(min_p or [0.0] * slots),
        greedy=False,
        filtered=filtered,
    )


def on_device(sampling):
    return Sampling(**{name: move(value) for name, value in vars(sampling).items()})


def levels_of(topology):
    return [TreeIndex.of(topology, torch.device(d)).levels for d in ("cpu", DEVICE)]


def by_kernels(patch, level, logits, sampling, above, uniforms):
    """Return what the kernels draw."""
    with patch.context() as here:
        here.setattr(seam, "_FUSED", (DEVICE,))
        draws = UniformDraws(move(uniforms))
        found = drawing.draw_level(level, move(logits), on_device(sampling), move(above), draws)
    assert draws.used == uniforms.shape[1]
    return [value.cpu() for value in found]


def in_pytorch(patch, *given):
    with patch.context() as here:
        here.setattr(seam, "_FUSED", ())
        return drawing.draw_level(*given[:-1], UniformDraws(given[-1]))


def random_level(rng, dtype):
    """Return a level, here and on the device, with logits, parameters and uniforms."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    here, there = levels_of(rng.choice(TOPOLOGIES))
    number = rng.randrange(len(here))
    level = here[number]
    slots, vocab = rng.randint(1, 3), rng.randint(4, 11)
    # Ties, zeros, and at times too little to draw from.
    weights = torch.randint(-3, 4, (slots, len(level.parents), vocab), generator=generator)
    weights = weights.clamp(min=0)
    weights[..., rng.randrange(vocab)] += weights.sum(-1) == 0
    sampling = sampling_at(
        [rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(slots)],
        [rng.choice([0.0, 0.0, 0.317, 1.0]) for _ in range(slots)],
    )
    above = torch.rand(slots, int(level.parents.max()) + 1, generator=generator) < 0.8
    uniforms = torch.rand(slots, len(level.best), generator=generator, dtype=DOUBLE)
    extreme = torch.rand(uniforms.shape, generator=generator)
    uniforms[extreme < 0.05] = 0.0
    uniforms[extreme > 0.95] = 1 - 2.0**-53
    return level, there[number], weights.to(dtype).log(), sampling, above, uniforms


def assert_same(found, expected, level, logits, sampling, tolerance):
    """Hold tokens, what exists, and distributions against each other."""
    (tokens, exist, probs), (others, existing, distributions) = found, expected
    assert torch.equal(exist, existing)
    sampled = sampling.temperature > 0
    assert torch.equal(tokens[sampled], others[sampled])
    # Of equal logits, which one is likelier is not specified.
    rows = (level.best // level.width).expand_as(tokens)
    values = [logits[torch.arange(len(tokens))[:, None], rows, own] for own in (tokens, others)]
    assert torch.equal(values[0][~sampled], values[1][~sampled])
    torch.testing.assert_close(probs, distributions, atol=tolerance, rtol=tolerance, equal_nan=True)


@pytest.mark.parametrize("block", [4, 1024])
def test_the_kernels_draw_what_pytorch_draws(block, monkeypatch):
    monkeypatch.setattr(drawing, "_BLOCK", block)
    existing = []

    @settings(max_examples=400 if DEVICE == "cuda" else 60 if block == 4 else 10)
    @given(st.randoms(use_true_random=False))
    def run(rng):
        level, there, logits, sampling, *given = random_level(rng, DOUBLE)
        expected = in_pytorch(monkeypatch, level, logits, sampling, *given)
        found = by_kernels(monkeypatch, there, logits, sampling, *given)
        assert_same(found, expected, level, logits, sampling, 1e-10)
        existing.extend(expected[1].flatten().tolist())

    run()
    assert existing.count(True) > existing.count(False) > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_with_several_blocks_the_kernels_draw_what_pytorch_draws(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    here, there = levels_of(TOPOLOGIES[0])
    sampling = sampling_at([1.0, 0.0, 0.7, 1.5], [0.0, 0.0, 0.001, 0.0])
    for level, other in zip(here, there, strict=True):
        # Of the likeliest token each block has one, so that draws go back and forth.
        logits = torch.randn(4, len(level.parents), 2500, generator=generator)
        logits[..., ::900] += 8
        logits = logits.to(dtype)
        above = torch.ones(4, int(level.parents.max()) + 1, dtype=torch.bool)
        uniforms = torch.rand(4, len(level.best), generator=generator, dtype=DOUBLE)
        expected = in_pytorch(monkeypatch, level, logits, sampling, above, uniforms)
        found = by_kernels(monkeypatch, other, logits, sampling, above, uniforms)
        assert_same(found, expected, level, logits, sampling, 1e-6)
        assert found[2].dtype == torch.float32


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_nothing_without_probability_is_drawn_and_what_is_left_is(uniform, monkeypatch):
    monkeypatch.setattr(drawing, "_BLOCK", 4)
    here, there = levels_of(Topology.from_branching([4]))
    logits = torch.full((1, 1, 12), -torch.inf)
    logits[0, 0, [2, 5, 11]] = torch.tensor([0.0, -1.0, 1.0])
    tokens, exist, _ = by_kernels(
        monkeypatch,
        there[0],
        logits,
        sampling_at([1.0]),
        torch.ones(1, 1, dtype=torch.bool),
        torch.full((1, 4), uniform, dtype=DOUBLE),
    )
    order = [2, 5, 11] if uniform == 0 else [11, 5, 2]
    assert tokens.tolist() == [[*order, 0]]
    assert exist.tolist() == [[True, True, True, False]]
    assert here[0].children.tolist() == [[[0, 0], [1, 1], [2, 2], [3, 3]]]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_what_is_broken_stays_visible_and_in_its_slot(broken, min_p, monkeypatch):
    monkeypatch.setattr(drawing, "_BLOCK", 4)
    here, there = levels_of(Topology.from_branching([2]))
    logits = torch.randn(4, 1, 10, generator=torch.Generator().manual_seed(0))
    logits[:2] = broken
    if broken > 0:
        logits[:2, :, 5:] = 0
    elif broken != broken:
        logits[:2, :, :9] = 0
    sampling = sampling_at([1.0, 0.0, 1.0, 0.0], [min_p] * 4)
    rest = (torch.ones(4, 1, dtype=torch.bool), torch.full((4, 2), 0.3, dtype=DOUBLE))
    tokens, exist, probs = by_kernels(monkeypatch, there[0], logits, sampling, *rest)
    expected = in_pytorch(monkeypatch, here[0], logits, sampling, *rest)
    assert bool(probs[:2].isnan().all())
    assert exist.tolist() == expected[1].tolist() == [[False] * 2, *[[True] * 2] * 3]
    assert bool(((tokens >= 0) & (tokens < 10)).all())
    assert torch.equal(tokens[2:], expected[0][2:])
    torch.testing.assert_close(probs[2:], expected[2][2:])


@pytest.mark.parametrize("topology", TOPOLOGIES[:3], ids=lambda topology: str(topology.nodes))
def test_whole_trees_are_those_of_pytorch(topology, monkeypatch):
    monkeypatch.setattr(drawing, "_BLOCK", 8)
    trees = []
    uniforms = torch.rand(
        3, topology.nodes - 1, generator=torch.Generator().manual_seed(2), dtype=DOUBLE
    )
    for fused in ((), (DEVICE,)):
        monkeypatch.setattr(seam, "_FUSED", fused)
        device = DEVICE if fused else "cpu"
        drafter = RandomDrafter(sampling_at([1.0, 0.0, 0.5]), 20, seed=3)
        if fused and device != "cpu":
            moved = on_device(drafter.sampling)
            monkeypatch.setattr(drafter, "_logits", lambda w, make=drafter._logits: move(make(w)))
            drafter.root, drafter.sampling = move(drafter.root), moved
        draws = UniformDraws(uniforms.to(device))
        trees.append(StaticTree(topology).build(drafter, draws))
        assert draws.used == topology.nodes - 1
    for field in fields(trees[0]):
        expected, found = (getattr(tree, field.name) for tree in trees)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=1e-6)
        else:
            assert found == expected


def test_many_siblings_are_drawn_in_pytorch(monkeypatch):
    here, _ = levels_of(Topology.from_branching([drawing._MOST + 1]))
    monkeypatch.setattr(seam, "_FUSED", ("cpu",))
    monkeypatch.setattr(drawing, "_draw_level", None)
    uniforms = torch.rand(1, drawing._MOST + 1, dtype=DOUBLE)
    above = torch.ones(1, 1, dtype=torch.bool)
    drawn = drawing.draw_level(
        here[0], torch.zeros(1, 1, 40), sampling_at([1.0]), above, UniformDraws(uniforms)
    )
    assert len(set(drawn[0][0].tolist())) == drawing._MOST + 1


def test_the_operator_is_what_compilers_take_it_for():
    _, there = levels_of(TOPOLOGIES[0])
    level = there[1]
    above = torch.ones(2, 3, dtype=torch.bool)
    given = (torch.randn(2, 2, 9), torch.tensor([1.0, 0.0]), torch.zeros(2), above)
    uniforms = torch.rand(2, 3, dtype=DOUBLE)
    torch.library.opcheck(
        drawing._draw_level,
        (*map(move, (*given, uniforms)), level.parents, level.children, 3),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("ids", [[0, 1, 2], [4, 1, 3]], ids=["target's", "its own"])
def test_over_all_uniforms_tree_and_rule_have_the_targets_distribution(monkeypatch, ids):
    """All that kernels decide changes at multiples of 1/n: so their middles are the whole of it."""
    monkeypatch.setattr(seam, "_FUSED", (DEVICE,))
    monkeypatch.setattr(drawing, "_BLOCK", 2)
    monkeypatch.setattr(deciding, "_BLOCK", 2)
    # A candidate is drawn in quarters, the next one in thirds or halves; the first is accepted in
    # halves, the next one or not; the bonus token is drawn in halves.
    steps = (4, 6, 2, 1, 2)
    axes = [(torch.arange(n, dtype=DOUBLE) + 0.5) / n for n in steps]
    uniforms = torch.cartesian_prod(*axes)
    slots = len(uniforms)
    draft = torch.tensor([0.5, 0.25, 0.25])
    target = torch.tensor([0.25, 0.25, 0.5])
    after = torch.tensor([0.5, 0.5, 0.0])
    own = None
    if ids != [0, 1, 2]:  # the head drafts from three of the target's six tokens, in their order
        own = torch.tensor(ids)
        target, after = (torch.zeros(6).index_copy(0, own, one) for one in (target, after))

    class Drafter:
        root = torch.zeros(slots, dtype=torch.int64, device=DEVICE)
        sampling = on_device(sampling_at([1.0] * slots))

        def begin(self):
            return move(draft.log().expand(slots, 1, 3))

    tree = StaticTree(Topology.from_branching([2])).build(
        Drafter(), UniformDraws(move(uniforms[:, :2]))
    )
    if own is not None:
        # As the loop's drafter hands a tree over: its tokens are the target's.
        tokens = torch.cat((tree.tokens[:, :1], move(own)[tree.tokens[:, 1:]]), 1)
        tree = replace(tree, tokens=tokens, draft_vocab=move(own))
    logits = torch.stack((target, after, after)).log().expand(slots, 3, -1)
    shape = TreeShape(3, 1, 2, 0, 1)
    outcome = SpeculativeRule().accept(
        tree,
        TargetProbs(move(logits), Drafter.sampling),
        shape,
        UniformDraws(move(uniforms[:, 2:])),
    )
    first = tree.tokens.gather(1, outcome.path[:, 1:])[:, 0]
    first = first.where(outcome.count > 0, outcome.bonus).cpu()
    size = len(target)
    share = torch.bincount(first, minlength=size) / slots
    assert share.tolist() == target.tolist()
    bonus = outcome.bonus[outcome.count > 0].cpu()
    assert (torch.bincount(bonus, minlength=size) / len(bonus)).tolist() == after.tolist()
    assert 0 < len(bonus) < slots
