from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin.blocks.scalar import scalar_speculative
from eagle.plugin.draws import UniformDraws
from eagle.plugin.laws import KNOWN_LAWS, Law
from eagle.plugin.sampling import Sampling, TargetProbs
from eagle.plugin.tree import TokenTree, TreeShape, ancestor_mask
from eagle_plugins.acceptance.speculative import SpeculativeRule

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


# --- the batched rule and its scalar twin on identical uniforms -----------------------------------


class TooClose(Exception):  # noqa: N818
    """A draw that rounding may decide; the twins need not agree on it."""


@dataclass
class ReplayedDraws:
    """Scalar draws that read the uniforms at the columns where the batched rule reads them."""

    uniforms: list[float]
    tolerance: float
    law: Law
    column: int = 0

    def bernoulli(self, prob):
        uniform = self.uniforms[self.column]
        # 0 and 1 need no tolerance: no uniform is below 0, all are below 1.
        if 0 < prob < 1 and abs(uniform - prob) < self.tolerance:
            raise TooClose
        return uniform < prob

    def categorical(self, weights):
        column = -1
        if self.law is Law.TOP_K:  # one draw after another; otherwise there is only the last
            column, self.column = self.column, self.column + 1
        threshold = self.uniforms[column] * sum(weights)
        total, found = 0.0, None
        for index, weight in enumerate(weights):
            if index > 0 and total > 0 and abs(total - threshold) < self.tolerance * sum(weights):
                raise TooClose
            total += weight
            if found is None and total > threshold:
                found = index
        if found is None:
            raise TooClose
        return found


@dataclass
class ScalarNode:
    index: int
    rank: int
    depth: int
    token: int
    target: list[float]
    draft: list[float] | None
    below: list[ScalarNode]
    draws: ReplayedDraws
    siblings: int

    @property
    def children(self):
        for child in sorted(self.below, key=lambda node: node.rank):
            if self.draws.law is not Law.TOP_K:
                self.draws.column = self.depth * self.siblings + child.rank
            yield child


def random_batch(rng: Random, law: Law, dtype: torch.dtype, *, filtered: bool = True):
    """Return a random batch of trees with random distributions, its shape and its uniforms."""
    slots, vocab, depth = rng.randint(1, 4), rng.randint(2, 7), rng.randint(0, 4)
    nodes = 1 + (rng.randint(depth, 3 * depth) if depth else 0)
    siblings = nodes - 1 if law is Law.IID else min(nodes - 1, vocab)
    generator = torch.Generator().manual_seed(rng.randrange(2**32))

    def weights(*shape: int) -> torch.Tensor:
        table = torch.randint(-2, 5, (*shape, vocab), generator=generator).clamp(min=0)
        table[..., rng.randrange(vocab)] += table.sum(-1) == 0
        return table.to(dtype)

    temperature = torch.tensor([rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(slots)])
    sampling = Sampling(
        temperature=temperature,
        top_k=torch.tensor([rng.choice([0, 0, 2]) if filtered else 0 for _ in range(slots)]),
        top_p=torch.tensor([rng.choice([1, 1, 0.7317]) if filtered else 1.0 for _ in range(slots)]),
        min_p=torch.tensor([0.0 if filtered else rng.choice([0, 0, 0.317]) for _ in range(slots)]),
        greedy=filtered and bool((temperature == 0).all()) and rng.random() < 0.5,
        filtered=filtered,
    )
    chance = 0.0 if law is Law.TOP_K else 0.8
    sampled = torch.tensor([bool(t > 0) and rng.random() < chance for t in temperature])
    draft = weights(slots, nodes)
    draft = draft / draft.sum(-1, keepdim=True)
    logits = weights(slots, nodes).log()
    if rng.random() < 0.2:
        logits = draft.log()
    rows = torch.stack([torch.randperm(nodes, generator=generator) for _ in range(slots)])
    tokens = torch.zeros(slots, nodes, dtype=torch.int64)
    parents = torch.full((slots, nodes), -1)
    depths, ranks = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for slot in range(slots):
        for node in range(1, nodes):
            tokens[slot, node] = rng.randrange(vocab)
            # A chain first, so that the depth is reached; then anywhere; some are padding.
            free = [
                n
                for n in range(node)
                if depths[slot, n] < depth and (n == 0 or parents[slot, n] >= 0)
            ]
            parent = node - 1 if node - 1 in free and node <= depth else rng.choice(free)
            own = [n for n in range(1, node) if parents[slot, n] == parent]
            left = draft[slot, rows[slot, parent]].tolist()
            if law is not Law.IID or not sampled[slot]:
                for other in own:
                    left[int(tokens[slot, other])] = 0.0
            options = [t for t in range(vocab) if left[t] > 0 or not sampled[slot]]
            options = [t for t in options if sampled[slot] or t not in tokens[slot, own].tolist()]
            if rng.random() < 0.1 or not options or len(own) >= siblings:
                continue
            parents[slot, node], depths[slot, node] = parent, depths[slot, parent] + 1
            ranks[slot, node], tokens[slot, node] = len(own), rng.choice(options)
    tree = TokenTree(
        tokens=tokens,
        parents=parents,
        depths=depths,
        ranks=ranks,
        ancestors=ancestor_mask(parents, depth),
        draft_probs=draft,
        draft_rows=rows,
        sampled=sampled,
        law=law,
    )
    shape = TreeShape(nodes, depth, siblings, nodes, nodes)
    uniforms = torch.rand(
        slots, SpeculativeRule().uniforms(shape), generator=generator, dtype=dtype
    )
    extreme = torch.rand(uniforms.shape, generator=generator)
    uniforms[extreme < 0.05] = 0.0
    uniforms[extreme > 0.95] = 1 - torch.finfo(dtype).eps
    return tree, TargetProbs(logits, sampling), shape, uniforms


def at_every_node(target, slot):
    """Return a slot's target distributions, one for each node."""
    logits = target.logits[slot].unsqueeze(1)  # as if each node were a slot with nothing else
    own = {
        name: value[slot].expand(len(logits)) if isinstance(value, torch.Tensor) else value
        for name, value in vars(target.sampling).items()
    }
    roots = torch.zeros(len(logits), dtype=torch.int64)
    return TargetProbs(logits, Sampling(**own)).at(roots).tolist()


def scalar_outcome(tree, target, shape, uniforms, slot, tolerance, replayed=ReplayedDraws):
    draws = replayed(uniforms[slot].tolist(), tolerance, tree.law)
    drafts = [None] * shape.nodes
    if tree.sampled[slot]:
        drafts = tree.draft_probs[slot, tree.draft_rows[slot]].tolist()
    told = (getattr(tree, name)[slot].tolist() for name in ("ranks", "depths", "tokens"))
    rows = zip(*told, at_every_node(target, slot), drafts, strict=True)
    nodes = [ScalarNode(i, *row, [], draws, shape.siblings) for i, row in enumerate(rows)]
    for node, parent in zip(nodes, tree.parents[slot].tolist(), strict=True):
        if parent >= 0:
            nodes[parent].below.append(node)
    accepted, bonus = scalar_speculative(nodes[0], tree.law, draws)
    return [node.index for node in accepted], bonus


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_the_batched_rule_agrees_with_its_scalar_twin(law, dtype, device):
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    compared = skipped = accepted = 0

    @settings(max_examples=400)
    @given(st.randoms(use_true_random=False))
    def compare(rng):
        nonlocal compared, skipped, accepted
        tree, target, shape, uniforms = random_batch(rng, law, dtype)
        outcome = on_device(tree, target, shape, uniforms, device)
        for slot in range(len(uniforms)):
            try:
                path, bonus = scalar_outcome(tree, target, shape, uniforms, slot, tolerance)
            except TooClose:
                skipped += 1
                continue
            count = int(outcome.count[slot])
            assert outcome.path[slot, 1 : count + 1].tolist() == path
            assert int(outcome.bonus[slot]) == bonus
            compared, accepted = compared + 1, accepted + bool(path)

    compare()
    assert compared > 700
    assert accepted > 100
    assert skipped < compared / 5


def on_device(tree, target, shape, uniforms, device):
    def move(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    sampling = Sampling(**{name: move(value) for name, value in vars(target.sampling).items()})
    return SpeculativeRule().accept(
        TokenTree(**{name: move(value) for name, value in vars(tree).items()}),
        TargetProbs(target.logits.to(device), sampling),
        shape,
        UniformDraws(uniforms.to(device)),
    )


# --- boundary draws -------------------------------------------------------------------------------


class FixedTarget:
    """Exact target distributions ``[B, V]``, the same at every node."""

    greedy = False

    def __init__(self, probs):
        self.probs = probs

    def at(self, nodes):
        return self.probs


def siblings(tokens, draft=None, law=Law.TOP_K, dtype=torch.float32):
    """Return a tree of one level; without a draft distribution, siblings are a fixed set."""
    count = len(tokens) + 1
    parents = torch.tensor([[-1, *[0] * len(tokens)]])
    return TokenTree(
        tokens=torch.tensor([[0, *tokens]]),
        parents=parents,
        depths=torch.tensor([[0, *[1] * len(tokens)]]),
        ranks=torch.tensor([[0, *range(len(tokens))]]),
        ancestors=ancestor_mask(parents, 1),
        draft_probs=None if draft is None else torch.tensor([[draft]], dtype=dtype),
        draft_rows=None if draft is None else torch.zeros(1, count, dtype=torch.int64),
        sampled=None if draft is None else torch.tensor([True]),
        law=law,
    ), TreeShape(count, 1, len(tokens), 0, 0 if draft is None else 1)


def decide(tree, shape, probs, uniforms, dtype=torch.float32):
    target = FixedTarget(torch.tensor([probs], dtype=dtype))
    draws = UniformDraws(torch.tensor([uniforms], dtype=dtype))
    outcome = SpeculativeRule().accept(tree, target, shape, draws)
    return outcome.path[0].tolist(), int(outcome.count[0]), int(outcome.bonus[0])


# Of a fixed set the rule draws one under top-k, and tries each under another law.
FIXED = [Law.TOP_K, Law.IID]
DRAFTS = [
    *[(None, law) for law in FIXED],
    ([0.5, 0.25, 0.25], Law.WITHOUT_REPLACEMENT),
    ([0.5, 0.25, 0.25], Law.IID),
]
JUST_UNDER_1 = 1 - 2.0**-24


@pytest.mark.parametrize(("draft", "law"), DRAFTS)
def test_zero_never_accepts_a_token_of_probability_zero(draft, law):
    tree, shape = siblings([1, 2], draft, law)
    assert decide(tree, shape, [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == ([0, 0], 0, 0)


@pytest.mark.parametrize(("draft", "law"), DRAFTS)
def test_a_certain_token_is_accepted_just_under_one(draft, law):
    tree, shape = siblings([2, 1], draft, law)
    uniforms = [JUST_UNDER_1] * 3
    assert decide(tree, shape, [0.0, 0.0, 1.0], uniforms) == ([0, 1], 1, 2)


@pytest.mark.parametrize("law", FIXED)
def test_just_under_one_never_falls_off_the_end_of_a_distribution(law):
    tree, shape = siblings([0], law=law)
    # float32 thirds add up to less than 1, and the last token has no probability.
    probs = [1 / 3, 1 / 3, 1 / 3, 0.0]
    assert decide(tree, shape, probs, [JUST_UNDER_1, JUST_UNDER_1]) == ([0, 0], 0, 2)


@pytest.mark.parametrize("law", FIXED)
def test_a_uniform_equal_to_the_probability_rejects(law):
    tree, shape = siblings([0], law=law)
    assert decide(tree, shape, [0.5, 0.5], [0.5, 0.0]) == ([0, 0], 0, 1)
    assert decide(tree, shape, [0.5, 0.5], [0.5 - 2**-24, 0.0]) == ([0, 1], 1, 0)


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.IID])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_exhausted_by_rounding_falls_back_to_the_target(law, dtype):
    eps = torch.finfo(dtype).eps
    tree, shape = siblings([0, 1], [0.5, 0.5, 0.0], law, dtype)
    # The target gives token 0 one bit less than the draft, so that it can be rejected, and no
    # token more: nothing is left of the residual.
    path, count, bonus = decide(
        tree, shape, [0.5 - eps / 2, 0.5, 0.0], [1 - eps / 2, 0.0, 0.9], dtype
    )
    assert path == [0, 2]
    assert count == 1
    assert bonus == 1
    rejected = decide(tree, shape, [0.5 - eps / 2, 0.5 - eps / 2, 0.0], [1 - eps / 2] * 3, dtype)
    assert rejected[2] in (0, 1)


def test_a_draft_without_mass_is_no_reason_for_nan():
    tree, shape = siblings([0, 0], [1.0, 0.0], Law.WITHOUT_REPLACEMENT)
    assert decide(tree, shape, [0.25, 0.75], [0.5, 0.0, 0.0]) == ([0, 0], 0, 1)


def test_repeated_siblings_are_tried_against_what_is_left():
    tree, shape = siblings([0, 0, 1], [0.75, 0.25], Law.IID)
    # After one rejection nothing is left of token 0, so its repetition cannot be accepted.
    assert decide(tree, shape, [0.5, 0.5], [0.9, 0.0, 0.9, 0.0]) == ([0, 3], 1, 0)
    assert decide(tree, shape, [0.5, 0.5], [0.5, 0.9, 0.9, 0.0]) == ([0, 1], 1, 0)


def test_of_repeated_siblings_in_a_fixed_set_the_first_is_followed():
    tree, shape = siblings([0, 1, 1])
    assert decide(tree, shape, [0.5, 0.5], [0.9, 0.0]) == ([0, 2], 1, 0)


@pytest.mark.parametrize(
    ("law", "uniform", "expected"),
    [
        # Drawn is the first token at 0, which is no candidate, and the last one just under 1.
        (Law.TOP_K, 0.0, ([0, 0, 0, 0], 0, 0)),
        (Law.TOP_K, JUST_UNDER_1, ([0, 1, 2, 3], 3, 1)),
        # Tried, a candidate is accepted at 0 and rejected just under 1.
        (Law.IID, 0.0, ([0, 1, 2, 3], 3, 0)),
        (Law.IID, JUST_UNDER_1, ([0, 0, 0, 0], 0, 0)),
    ],
)
def test_all_accepted_and_all_rejected(law, uniform, expected):
    parents = torch.tensor([[-1, 0, 1, 2]])
    tree = TokenTree(
        tokens=torch.tensor([[0, 1, 1, 1]]),
        parents=parents,
        depths=torch.tensor([[0, 1, 2, 3]]),
        ranks=torch.zeros(1, 4, dtype=torch.int64),
        ancestors=ancestor_mask(parents, 3),
        law=law,
    )
    assert decide(tree, TreeShape(4, 3, 1, 2), [0.5, 0.5], [uniform] * 4) == expected


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("law", FIXED)
def test_padding_is_never_accepted(law, greedy):
    tree, shape = siblings([1, 1], law=law)
    tree.parents[0, 1:] = -1
    logits = torch.tensor([[0.0, 9.0]]).repeat(1, 3, 1).reshape(1, 3, 2)
    outcome = SpeculativeRule().accept(
        tree,
        TargetProbs(logits, sampling_at([0.0], greedy)),
        shape,
        UniformDraws(torch.zeros(1, 3)),
    )
    assert outcome.count.tolist() == [0]
    assert outcome.bonus.tolist() == [1]


def sampling_at(temperatures, greedy=False):
    slots = len(temperatures)
    return Sampling(
        temperature=torch.tensor(temperatures),
        top_k=torch.zeros(slots, dtype=torch.int64),
        top_p=torch.ones(slots),
        min_p=torch.zeros(slots),
        greedy=greedy,
        filtered=False,
    )


@pytest.mark.parametrize("law", FIXED)
def test_at_temperature_zero_the_greedy_path_and_the_general_one_agree(law):
    for seed in range(50):
        tree, target, shape, uniforms = random_batch(Random(seed), Law.TOP_K, torch.float32)
        tree = replace(tree, draft_probs=None, draft_rows=None, sampled=None, law=law)
        slots = len(uniforms)
        outcomes = [
            SpeculativeRule().accept(
                tree,
                TargetProbs(target.logits, sampling_at([0.0] * slots, greedy)),
                shape,
                UniformDraws(uniforms),
            )
            for greedy in (True, False)
        ]
        for name in ("path", "count", "bonus"):
            assert torch.equal(getattr(outcomes[0], name), getattr(outcomes[1], name))


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_nan_of_one_slot_stays_in_range_and_in_its_slot(law, greedy):
    tree, target, shape, uniforms = random_batch(Random(8), law, torch.float32)
    slots = len(uniforms)
    assert slots > 1
    sampling = sampling_at([0.0 if greedy else 1.0] * slots, greedy)
    clean = SpeculativeRule().accept(
        tree, TargetProbs(target.logits, sampling), shape, UniformDraws(uniforms)
    )
    logits = target.logits.clone()
    logits[0] = torch.nan
    outcome = SpeculativeRule().accept(
        tree, TargetProbs(logits, sampling), shape, UniformDraws(uniforms)
    )
    assert 0 <= int(outcome.bonus[0]) < logits.shape[2]
    assert bool(((outcome.path >= 0) & (outcome.path < shape.nodes)).all())
    for name in ("path", "count", "bonus"):
        assert torch.equal(getattr(outcome, name)[1:], getattr(clean, name)[1:])


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_nothing_is_read_on_the_host(law, greedy):
    tree, target, shape, uniforms = random_batch(Random(5), law, torch.float32)
    sampling = sampling_at([0.0 if greedy else 1.0] * len(uniforms), greedy)
    # A meta tensor has a shape and no content: reading a value of it raises.
    outcome = on_device(tree, TargetProbs(target.logits, sampling), shape, uniforms, "meta")
    assert outcome.path.shape == (len(uniforms), shape.depth + 1)
    assert outcome.count.shape == outcome.bonus.shape == (len(uniforms),)


@pytest.mark.parametrize(("draft", "law"), DRAFTS)
def test_no_more_than_the_declared_uniforms_are_read(draft, law):
    tree, shape = siblings([0, 1, 2], draft, law)
    draws = UniformDraws(torch.zeros(1, 10))
    SpeculativeRule().accept(tree, FixedTarget(torch.tensor([[0.5, 0.25, 0.25]])), shape, draws)
    assert SpeculativeRule().uniforms(shape) == 4
    assert draws.used == (shape.depth + 1 if law is Law.TOP_K else 4)


def test_at_temperature_zero_no_uniform_is_read():
    tree, shape = siblings([0, 1])
    draws = UniformDraws(torch.zeros(1, 10))
    target = TargetProbs(torch.zeros(1, 3, 2), sampling_at([0.0], greedy=True))
    assert SpeculativeRule().accept(tree, target, shape, draws).count.tolist() == [1]
    assert draws.used == 0
