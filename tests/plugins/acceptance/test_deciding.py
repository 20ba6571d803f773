"""The rule's kernels against the scalar rule and PyTorch: interpreted, or compiled on CUDA."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.plugin import draws as seam
from eagle.plugin.draws import UniformDraws
from eagle.plugin.laws import KNOWN_LAWS, Law
from eagle.plugin.sampling import Sampling, TargetProbs
from eagle.plugin.tree import TokenTree, TreeShape
from eagle_plugins.acceptance import deciding, kernels
from eagle_plugins.acceptance.speculative import SpeculativeRule
from tests.interpreted import DEVICE, move, needs_triton, quick, quiet
from tests.plugins.acceptance.test_speculative import (
    DRAFTS,
    FIXED,
    JUST_UNDER_1,
    ReplayedDraws,
    TooClose,
    random_batch,
    sampling_at,
    scalar_outcome,
    siblings,
)

__all__ = ["quick"]
pytestmark = [needs_triton, quiet]

# Blocks, and how many of them at once: small ones, so that a small vocabulary has several.
TILES = {"narrow": (4, 1), "two at once": (2, 2), "shipped": (1024, 8)}
FEW, MANY = (400, 400) if DEVICE == "cuda" else (3, 18)  # programs are interpreted one by one


def use(patch, tiles):
    block, lines = TILES[tiles]
    patch.setattr(deciding, "_BLOCK", block)
    patch.setattr(deciding, "_TILE", lines)
    patch.setattr(deciding, "_WARPS", 32 if tiles == "shipped" else 1)


def decided(tree, target, shape, uniforms):
    """Return what the kernels decide."""
    sampling = Sampling(**{name: move(value) for name, value in vars(target.sampling).items()})
    outcome = deciding.accept(
        TokenTree(**{name: move(value) for name, value in vars(tree).items()}),
        TargetProbs(move(target.logits), sampling),
        shape,
        UniformDraws(move(uniforms)),
    )
    return replace(outcome, **{name: value.cpu() for name, value in vars(outcome).items()})


# --- the kernels and the scalar rule on identical uniforms ----------------------------------------


@dataclass
class CarefulDraws(ReplayedDraws):
    """Replayed draws of a twin whose probabilities are only nearly the same.

    What is nearly 0 may be 0 to the other one, which uniforms of nearly 0 tell apart; and so at 1.
    """

    residual: bool = False

    def bernoulli(self, prob):
        uniform = self.uniforms[self.column]
        if min(uniform, 1 - uniform) < self.tolerance and abs(uniform - prob) < self.tolerance:
            raise TooClose
        accepted = super().bernoulli(prob)
        self.residual = not accepted
        return accepted

    def categorical(self, weights):
        if self.residual and self.uniforms[-1] < self.tolerance:
            raise TooClose
        return super().categorical(weights)


def shuffle(rng, tree):
    """Have siblings tried in another order than that of their nodes."""
    for parents, ranks in zip(tree.parents, tree.ranks, strict=True):
        for parent in set(parents.tolist()) - {-1}:
            own = (parents == parent).nonzero()[:, 0]
            ranks[own] = ranks[own][torch.tensor(rng.sample(range(len(own)), len(own)))]


def mapped(rng, tree, vocab):
    """Return the tree with drafts over a vocabulary of their own, and the same over the target's.

    Some tokens that are no candidates are what it does not have.
    """
    spare = sorted(set(range(vocab)) - set(tree.tokens.flatten().tolist()))
    lacking = rng.sample(spare, rng.randint(0, len(spare)))
    ids = rng.sample(sorted(set(range(vocab)) - set(lacking)), vocab - len(lacking))
    drafts = tree.draft_probs.clone()
    drafts[..., lacking] = 0
    mass = drafts.sum(-1, keepdim=True)
    drafts = (drafts / mass).where(mass > 0, drafts)
    whole = replace(tree, draft_probs=drafts)
    return replace(tree, draft_probs=drafts[..., ids], draft_vocab=torch.tensor(ids)), whole


def compare(rng, law, dtype, own_vocabulary=False):
    """Hold the kernels against the scalar rule on one batch; return what came of each slot."""
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    tree, target, shape, uniforms = random_batch(rng, law, dtype, filtered=False)
    shuffle(rng, tree)
    own = tree
    if own_vocabulary:
        own, tree = mapped(rng, tree, target.logits.shape[-1])
    outcome = decided(own, target, shape, uniforms)
    found = []
    for slot in range(len(uniforms)):
        # Of a fixed set, what is 0 is 0 to both, and what is 1 is 1.
        draws = CarefulDraws if bool(tree.sampled[slot]) else ReplayedDraws
        try:
            path, bonus = scalar_outcome(tree, target, shape, uniforms, slot, tolerance, draws)
        except TooClose:
            found.append("skipped")
            continue
        assert outcome.path[slot].tolist() == [0, *path, *[0] * (shape.depth - len(path))]
        assert int(outcome.count[slot]) == len(path)
        assert int(outcome.bonus[slot]) == bonus
        found.append("accepted" if path else "refused")
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_the_kernels_agree_with_the_scalar_rule(law, tiles, dtype, monkeypatch):
    use(monkeypatch, tiles)
    examples = MANY if tiles == "narrow" and dtype == torch.float64 else FEW
    found = []

    @settings(max_examples=examples)
    @given(st.randoms(use_true_random=False))
    def run(rng):
        found.extend(compare(rng, law, dtype))

    run()
    if examples == MANY:
        assert found.count("accepted") > MANY / 4
        assert found.count("refused") > MANY / 4
        assert found.count("skipped") < len(found) / 3


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.IID], ids=str)
def test_they_agree_where_drafts_have_a_vocabulary_of_their_own(law, monkeypatch):
    use(monkeypatch, "narrow")
    found, seeds = [], max(MANY // 2, 9)
    for seed in range(seeds):
        found += compare(Random(seed), law, torch.float64, own_vocabulary=True)
    assert min(found.count("accepted"), found.count("refused")) >= seeds / 3
    assert found.count("skipped") < len(found) / 3


# A change of the kernels' text, and the laws under which it must be noticed. None of them reads or
# writes out of bounds, which on a GPU would end more than the test.
MUTANTS = [
    ("cut + mass * share, cut)", "cut, cut)", [Law.WITHOUT_REPLACEMENT]),
    ("cut, mass = further, remains", "cut = further", [Law.IID]),
    ("1.0 / tl.where(draft_mass > 0, draft_mass, 1.0)", "share", [Law.WITHOUT_REPLACEMENT]),
    ("if distinct:", "if drafted:", [Law.IID]),
    ("tl.where(from_draft, share * q, 1.0)", "share * q", [Law.IID]),
    ("tl.where(column == token, 0.0, weights)", "weights", [Law.WITHOUT_REPLACEMENT]),
    ("uniforms + depth * siblings + rank", "uniforms + rank", [Law.WITHOUT_REPLACEMENT]),
    ("column = levels * siblings", "column = depth * siblings", [Law.WITHOUT_REPLACEMENT]),
    ("(order == rank)", "(order >= rank)", [Law.WITHOUT_REPLACEMENT]),
    ("rows + slot * row_stride + node", "rows + slot * row_stride", [Law.WITHOUT_REPLACEMENT]),
    ("(above == node) &", "(above <= node) &", [Law.TOP_K, Law.IID]),
    ("below & (word == token)", "below", [Law.TOP_K]),
    ("column = tl.minimum(depth, levels)", "column = levels", [Law.TOP_K]),
    ("tl.where(child > 0, child, node)", "tl.maximum(child, 0)", [Law.TOP_K]),
]
OF_THE_MAP = [
    ("place >= 0", "place > 0"),
    ("places + column,", "places + 0 * column,"),
    ("(slot * distributions + own) * draft_size", "slot * distributions * draft_size"),
]


@pytest.mark.parametrize(
    ("old", "new", "law"),
    [pytest.param(old, new, law, id=f"{new}-{law}") for old, new, laws in MUTANTS for law in laws],
)
def test_mutant_of_the_kernels_is_caught(old, new, law, monkeypatch, tmp_path):
    caught(old, new, law, monkeypatch, tmp_path)


@pytest.mark.parametrize(("old", "new"), OF_THE_MAP, ids=[new for _, new in OF_THE_MAP])
def test_mutant_of_the_map_is_caught(old, new, monkeypatch, tmp_path):
    caught(old, new, Law.WITHOUT_REPLACEMENT, monkeypatch, tmp_path, own_vocabulary=True)


def caught(old, new, law, monkeypatch, tmp_path, **options):
    source = Path(kernels.__file__).read_text()
    assert old in source
    # A file, since Triton reads the text of what it compiles.
    file = tmp_path / "mutant.py"
    file.write_text(source.replace(old, new))
    found = importlib.util.spec_from_file_location("mutant", file)
    mutant = importlib.util.module_from_spec(found)
    found.loader.exec_module(mutant)
    monkeypatch.setitem(sys.modules, kernels.__name__, mutant)
    use(monkeypatch, "narrow")

    def everything():
        for seed in range(100):
            compare(Random(seed), law, torch.float64, **options)

    with pytest.raises(AssertionError):
        everything()


# --- boundary draws -------------------------------------------------------------------------------


def decide(tree, shape, weights, uniforms, temperature=1.0):
    logits = torch.tensor([weights], dtype=torch.float64).log()[:, None].repeat(1, shape.nodes, 1)
    target = TargetProbs(logits.float(), sampling_at([temperature]))
    outcome = decided(tree, target, shape, torch.tensor([uniforms], dtype=torch.float64))
    return outcome.path[0].tolist(), int(outcome.count[0]), int(outcome.bonus[0])


@pytest.mark.parametrize(("draft", "law"), DRAFTS)
def test_zero_never_accepts_a_token_of_probability_zero(draft, law):
    tree, shape = siblings([1, 2], draft, law)
    assert decide(tree, shape, [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == ([0, 0], 0, 0)


@pytest.mark.parametrize("uniform", [JUST_UNDER_1, 1 - 2.0**-53])
@pytest.mark.parametrize(("draft", "law"), DRAFTS)
def test_a_certain_token_is_accepted_just_under_one(draft, law, uniform):
    tree, shape = siblings([2, 1], draft, law)
    assert decide(tree, shape, [0.0, 0.0, 1.0], [uniform] * 3) == ([0, 1], 1, 2)


@pytest.mark.parametrize("law", FIXED)
def test_just_under_one_never_falls_off_the_end_of_a_distribution(law):
    tree, shape = siblings([0], law=law)
    uniforms = [1 - 2.0**-53] * 2
    assert decide(tree, shape, [1.0, 1.0, 1.0, 0.0], uniforms) == ([0, 0], 0, 2)


@pytest.mark.parametrize("law", FIXED)
def test_a_uniform_equal_to_the_probability_rejects(law):
    tree, shape = siblings([0], law=law)
    assert decide(tree, shape, [1.0, 1.0], [0.5, 0.0]) == ([0, 0], 0, 1)
    assert decide(tree, shape, [1.0, 1.0], [0.5 - 2**-24, 0.0]) == ([0, 1], 1, 0)


@pytest.mark.parametrize("law", [Law.WITHOUT_REPLACEMENT, Law.IID])
def test_an_exhausted_residual_falls_back_to_the_target(law):
    # Nothing is left where the draft is above the target everywhere, as by rounding it may be.
    tree, shape = siblings([0, 1], [0.75, 0.75, 0.0], law)
    assert decide(tree, shape, [0.5, 0.5, 0.0], [0.9, 0.0, 0.9]) == ([0, 2], 1, 1)
    assert decide(tree, shape, [0.5, 0.5, 0.0], [0.9, 0.9, 0.3]) == ([0, 0], 0, 0)
    assert decide(tree, shape, [0.5, 0.5, 0.0], [0.9, 0.9, 0.6]) == ([0, 0], 0, 1)


def test_a_draft_without_mass_is_no_reason_for_nan():
    tree, shape = siblings([0, 0], [1.0, 0.0], Law.WITHOUT_REPLACEMENT)
    assert decide(tree, shape, [0.25, 0.75], [0.5, 0.0, 0.0]) == ([0, 0], 0, 1)


def test_repeated_siblings_are_tried_against_what_is_left():
    tree, shape = siblings([0, 0, 1], [0.75, 0.25], Law.IID)
    assert decide(tree, shape, [0.5, 0.5], [0.9, 0.0, 0.9, 0.0]) == ([0, 3], 1, 0)
    assert decide(tree, shape, [0.5, 0.5], [0.5, 0.9, 0.9, 0.0]) == ([0, 1], 1, 0)


def test_of_repeated_siblings_in_a_fixed_set_the_first_is_followed():
    tree, shape = siblings([0, 1, 1])
    assert decide(tree, shape, [0.5, 0.5], [0.9, 0.0]) == ([0, 2], 1, 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("draft", "law"), DRAFTS)
def test_padding_is_never_accepted(draft, law, temperature):
    tree, shape = siblings([1, 1], draft, law)
    tree.parents[0, 1:] = -1
    assert decide(tree, shape, [0.0, 1.0, 0.0], [0.0] * 3, temperature) == ([0, 0], 0, 1)


def test_the_first_of_equal_logits_is_taken_at_temperature_zero(monkeypatch):
    use(monkeypatch, "narrow")
    for law in FIXED:
        tree, shape = siblings([7, 3], law=law)
        weights = [0.5, 0.5, 0.0, *[1.0] * 9]
        assert decide(tree, shape, weights, [JUST_UNDER_1] * 3, 0.0) == ([0, 2], 1, 3)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_a_broken_slot_stays_in_range_and_in_its_slot(law, temperature, broken):
    tree, target, shape, uniforms = random_batch(Random(8), law, torch.float32, filtered=False)
    slots = len(uniforms)
    assert slots > 1
    sampling = sampling_at([temperature] * slots)
    clean = decided(tree, TargetProbs(target.logits, sampling), shape, uniforms)
    logits = target.logits.clone()
    logits[0] = broken
    outcome = decided(tree, TargetProbs(logits, sampling), shape, uniforms)
    assert 0 <= int(outcome.bonus[0]) < logits.shape[2]
    assert bool(((outcome.path >= 0) & (outcome.path < shape.nodes)).all())
    for name in ("path", "count", "bonus"):
        assert torch.equal(getattr(outcome, name)[1:], getattr(clean, name)[1:])


def test_a_broken_draft_without_children_does_no_harm():
    tree, shape = siblings([1], [0.5, 0.25, 0.25], Law.WITHOUT_REPLACEMENT)
    tree.draft_probs[:] = torch.nan
    tree.parents[0, 1] = -1
    assert decide(tree, shape, [0.25, 0.5, 0.25], [0.0, 0.5]) == ([0, 0], 0, 1)


# --- large vocabularies, and where the kernels are taken ------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "own"),
    [(torch.float32, None), (torch.float16, None), (torch.bfloat16, None), (torch.bfloat16, 900)],
)
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_with_several_blocks_the_kernels_agree_with_pytorch(law, dtype, own):
    generator = torch.Generator().manual_seed(4)
    vocab, nodes = 2500, 5
    logits = (torch.randn(3, nodes, vocab, generator=generator) * 2).to(dtype)
    size = own or vocab
    draft = (torch.randn(3, 2, size, generator=generator) * 2).softmax(-1)
    tokens = draft[:, [0, 0, 0, 0, 1]].argsort(-1, descending=True)[:, torch.arange(5), :1][..., 0]
    tokens[:, 2] = (tokens[:, 2] + size // 2 - 50) % size
    ids = torch.randperm(vocab, generator=generator)[:own] if own else None
    if ids is not None:
        tokens = ids[tokens]
    parents = torch.tensor([-1, 0, 0, 0, 1]).expand(3, -1)
    tree = TokenTree(
        tokens=tokens,
        parents=parents,
        depths=torch.tensor([0, 1, 1, 1, 2]).expand(3, -1),
        ranks=torch.tensor([0, 0, 1, 2, 0]).expand(3, -1),
        ancestors=torch.zeros(3, nodes, nodes, dtype=torch.bool),
        draft_probs=draft,
        draft_rows=torch.tensor([0, 1, 0, 0, 0]).expand(3, -1),
        sampled=torch.tensor([True, False, True]),
        law=law,
        draft_vocab=ids,
    )
    assert deciding.serves(tree)
    shape = TreeShape(nodes, 2, 3, 1, 2)
    sampling = replace(sampling_at([1.0, 0.0, 0.7]), min_p=torch.tensor([0.0, 0.0, 0.01]))
    target = TargetProbs(logits, sampling)
    for _ in range(3 if DEVICE == "cpu" else 100):
        uniforms = torch.rand(3, 7, generator=generator, dtype=torch.float64)
        expected = SpeculativeRule().accept(tree, target, shape, UniformDraws(uniforms))
        outcome = decided(tree, target, shape, uniforms)
        for name in ("path", "count", "bonus"):
            assert torch.equal(getattr(outcome, name), getattr(expected, name))


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
def test_as_many_uniforms_are_read_as_in_pytorch(law, monkeypatch):
    tree, target, shape, uniforms = random_batch(Random(3), law, torch.float32, filtered=False)
    monkeypatch.setattr(deciding, "_accept", lambda *given: [None] * 3)
    read = []
    for accept in (SpeculativeRule().accept, deciding.accept):
        draws = UniformDraws(uniforms)
        accept(tree, target, shape, draws)
        read.append(draws.used)
    assert read[0] == read[1] <= SpeculativeRule().uniforms(shape)


class OtherDraws(UniformDraws):
    pass


@pytest.mark.parametrize(
    ("draws", "filtered", "device", "taken"),
    [
        (UniformDraws, False, "cpu", True),
        (OtherDraws, False, "cpu", False),
        (UniformDraws, True, "cpu", False),
        (UniformDraws, False, "cuda", False),
    ],
)
def test_where_the_kernels_are_taken(draws, filtered, device, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(deciding, "accept", lambda *given: calls.append(given))
    monkeypatch.setattr(seam, "_FUSED", (device,))
    tree, target, shape, uniforms = random_batch(Random(3), Law.IID, torch.float32, filtered=False)
    target = replace(target, sampling=replace(target.sampling, filtered=filtered))
    SpeculativeRule().accept(tree, target, shape, draws(uniforms))
    assert bool(calls) is taken


@pytest.mark.parametrize("whose", ["the target 3", "their vocabulary 2"])
def test_drafts_of_another_size_than_their_vocabulary_are_refused(whose):
    tree, shape = siblings([1], [0.5, 0.5, 0.0, 0.0], Law.IID)
    if "their" in whose:
        tree = replace(tree, draft_vocab=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=f"have 4 tokens, {whose}"):
        decide(tree, shape, [0.25, 0.5, 0.25], [0.0, 0.5])


@pytest.mark.parametrize("law", [Law.TOP_K, Law.IID])
def test_the_operator_is_what_compilers_take_it_for(law):
    tree, target, shape, uniforms = random_batch(Random(3), law, torch.float32, filtered=False)
    given = [move(value) for value in (target.logits, *vars(target.sampling).values())]
    names = ("tokens", "parents", "depths", "ranks", "draft_probs", "draft_rows", "sampled")
    own = [move(getattr(tree, name)) for name in names]
    if law is Law.TOP_K:
        own[4:] = [None] * 3
    flags = (shape.depth, shape.siblings, law is Law.IID, False)
    torch.library.opcheck(
        deciding._accept,
        (given[0], given[1], given[4], *own, move(uniforms), *flags),
        test_utils=("test_schema", "test_faketensor"),
    )
    if law is Law.IID:
        vocabulary = move(torch.arange(target.logits.shape[-1]))
        torch.library.opcheck(
            deciding._accept,
            (given[0], given[1], given[4], *own, move(uniforms), *flags, vocabulary),
            test_utils=("test_schema", "test_faketensor"),
        )
