"""The field's acceptance rules: proved exact, with mutants, and the same as their scalar twins."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from hypothesis import Phase, settings

from eagle import Decoder, SamplingParams
from eagle.plugin import (
    KNOWN_LAWS,
    IncompatibleError,
    Law,
    StaticTree,
    TargetProbs,
    TokenTree,
    Topology,
    UniformDraws,
    ancestor_mask,
)
from eagle.testing import assert_capturable, assert_lossless
from eagle_strategies.rules.block import BlockRule
from eagle_strategies.rules.measure import Owed
from eagle_strategies.rules.transport import TransportConfig, TransportRule, scalar_transport
from eagle_strategies.rules.traversal import TraversalRule
from tests.plugins.acceptance.test_speculative import (
    ReplayedDraws,
    ScalarNode,
    TooClose,
    random_batch,
    sampling_at,
)

ALL = TransportConfig(levels="all")
RULES = {
    "block": BlockRule,
    "traversal": TraversalRule,
    "transport": TransportRule,
    "all": partial(TransportRule, ALL),
}
# To know that it is caught is enough: no shrinking to the smallest example.
QUICK = settings(phases=[Phase.generate], max_examples=300, deadline=None)
SOME = settings(max_examples=15, deadline=None)


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_lossless_under_every_law_that_it_declares(rule, law):
    assert law in RULES[rule]().laws
    assert_lossless(RULES[rule](), law, settings=SOME)


@pytest.mark.parametrize("level", [1, 2])
def test_any_level_of_siblings_may_be_ordered(level):
    class OneLevel(TransportRule):
        scalar = partial(scalar_transport, level=level)

    assert_lossless(OneLevel(), Law.WITHOUT_REPLACEMENT, settings=SOME)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_lossless_in_many_worlds(rule, law):
    assert_lossless(RULES[rule](), law, settings=settings(max_examples=2000, deadline=None))


@pytest.mark.parametrize("rule", ["traversal", "transport", "all"])
def test_a_drawn_static_tree_and_the_rule_are_lossless_together(rule):
    tree = StaticTree(Topology.from_paths([[0], [1], [0, 0], [1, 0]]), Law.WITHOUT_REPLACEMENT)
    assert_lossless(RULES[rule](), builder=tree, settings=settings(SOME, max_examples=10))


class OneFixedOneDrawn(Law):
    """The first sibling is the likeliest token, the second is drawn from the others."""

    name, distinct = "one-fixed-one-drawn", True

    def proposal(self, left, rank):
        if rank:
            return left
        best = left.argmax(1, keepdim=True)
        return torch.zeros_like(left).scatter(1, best, left.gather(1, best).sign())

    def rest(self, left, token):
        others = left.scatter(1, token, 0.0)
        mass = others.sum(-1, keepdim=True)
        return (others / mass).where(mass > 0, others)


def test_traversal_goes_by_what_a_law_of_ones_own_says():
    assert_lossless(TraversalRule(), OneFixedOneDrawn(), settings=SOME)


# --- mutants --------------------------------------------------------------------------------------


class ScaleForgotten(Owed):
    def chance(self, proposal, token):
        return Owed(torch.ones_like(self.scale), self.probs).chance(proposal, token)


class ResidualOfTheToken(Owed):
    """The residual of token verification, p - q: that of block verification has a p - q."""

    def after(self, proposal):
        right = super().after(proposal)
        wrong = Owed(torch.ones_like(self.scale), self.probs).after(proposal)
        return type(self)(right.scale, wrong.probs)


class ResidualSkipped(Owed):
    def after(self, proposal):
        return type(self)(super().after(proposal).scale, self.probs)


class ScaleNotLowered(Owed):
    def after(self, proposal):
        return type(self)(self.scale, super().after(proposal).probs)


class MassForScale(Owed):
    """Takes what is left over 1, not over the probability of the rejection, for the scale."""

    def after(self, proposal):
        mass = (self.scale * self.probs - proposal).clamp(min=0).sum(1, keepdim=True)
        return type(self)(mass, super().after(proposal).probs)


TREE_OF = {"block": [[0], [0, 0]], "traversal": [[0], [0, 0], [0, 1]]}


def drawn(paths):
    return StaticTree(Topology.from_paths(paths), Law.WITHOUT_REPLACEMENT)


WRONG = [ScaleForgotten, ResidualOfTheToken, ResidualSkipped, ScaleNotLowered, MassForScale]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("rule", ["block", "traversal"])
def test_a_wrong_residual_is_caught(rule, wrong, monkeypatch):
    for module in ("block", "upwards", "transport"):
        monkeypatch.setattr(f"eagle_strategies.rules.{module}.Owed", wrong)
    mutant = type("Mutant", (RULES[rule],), {"scalar": None})
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(mutant(), builder=drawn(TREE_OF[rule]), settings=QUICK)


@pytest.mark.parametrize("module", ["block", "traversal", "transport"])
def test_a_wrong_residual_of_the_scalar_twin_is_caught(module, monkeypatch):
    monkeypatch.setattr(
        f"eagle_strategies.rules.{module}.scalar_rest",
        lambda scale, target, proposal: (scale, target),
    )
    with pytest.raises(AssertionError, match=rf"scalar_{module} is not lossless"):
        assert_lossless(RULES[module](), Law.IID, settings=QUICK)


class DraftKept(TraversalRule):
    scalar = None

    def __init__(self, config):
        pass

    @staticmethod
    def _rest(tree, node, draft, token):
        return draft


class LawOfTheDraft(TransportRule):
    """Takes the token that is tried for one drawn in turn."""

    scalar = None

    @staticmethod
    def _proposal(brood):
        wanted, room, _ = TransportRule._proposal(brood)
        return wanted, room, brood.law


class OrderForgotten(TransportRule):
    """Takes the one that waits on for the next draw."""

    scalar = None

    @staticmethod
    def _behind(brood, wanted, per_room, token):
        _, others = TransportRule._behind(brood, wanted, per_room, token)
        return others / others.sum(1, keepdim=True).clamp(min=1e-30), others


class TriedTokenKept(TransportRule):
    scalar = None

    @staticmethod
    def _behind(brood, wanted, per_room, token):
        law, _ = TransportRule._behind(brood, wanted, per_room, token)
        return law, brood.base


@pytest.mark.parametrize("mutant", [DraftKept, LawOfTheDraft, OrderForgotten, TriedTokenKept])
def test_a_wrong_law_of_siblings_is_caught(mutant):
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(mutant(ALL), builder=drawn([[0], [1], [2]]), settings=QUICK)


def test_a_wrong_order_of_visits_is_caught(monkeypatch):
    monkeypatch.setattr(
        "eagle_strategies.rules.upwards._visited_before",
        lambda tree, turn: torch.ones_like(tree.ancestors).tril(-1).mT,
    )
    mutant = type("Mutant", (TraversalRule,), {"scalar": None})
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless(mutant(), builder=drawn([[0], [1], [0, 0], [1, 0]]), settings=QUICK)


# --- the batched rules and their scalar twins on identical uniforms -------------------------------


class OneUniform(ReplayedDraws):
    """Trials one after another, all decided by one uniform, as one draw of the first success."""

    low, left = 0.0, 1.0

    def bernoulli(self, prob):
        uniform = self.uniforms[0]
        if 0 < prob < 1 and abs(uniform - self.low - self.left * prob) < self.tolerance:
            raise TooClose
        if uniform < self.low + self.left * prob:
            return True
        self.low, self.left = self.low + self.left * prob, self.left * (1 - prob)
        return False

    def categorical(self, weights):
        if self.law is not Law.TOP_K:
            self.column = 1
            self.uniforms = [self.uniforms[1]] * 2
        return super().categorical(weights)


def scalar_outcome(rule, tree, target, shape, uniforms, slot, tolerance):
    """Return the scalar twin's path and bonus token for one slot."""
    draws = OneUniform(uniforms[slot].tolist(), tolerance, tree.law)
    drawn = bool(tree.sampled[slot])
    nodes = [
        ScalarNode(
            index,
            int(tree.ranks[slot, index]),
            int(tree.depths[slot, index]),
            int(tree.tokens[slot, index]),
            target.at(torch.full((len(tree.tokens),), index))[slot].tolist(),
            tree.draft_probs[slot, tree.draft_rows[slot, index]].tolist() if drawn else None,
            [],
            draws,
            shape.siblings,
        )
        for index in range(shape.nodes)
    ]
    for index in range(1, shape.nodes):
        if tree.parents[slot, index] >= 0:
            nodes[int(tree.parents[slot, index])].below.append(nodes[index])
    for node in nodes:
        node.below.sort(key=lambda child: child.rank)
    plain = [Plain(node, nodes) for node in nodes]
    own = {"level": shape.depth} if rule.scalar is scalar_transport and rule.config != ALL else {}
    accepted, bonus = rule.scalar(plain[0], tree.law, draws, **own)
    return [node.node.index for node in accepted], bonus


class Plain:
    """A node whose children are looked at all at once."""

    def __init__(self, node, nodes):
        self.node, self.nodes = node, nodes
        self.token, self.target, self.draft = node.token, node.target, node.draft

    @property
    def children(self):
        return [Plain(child, self.nodes) for child in self.node.below]


def chain_of(tree, shape):
    """Return a tree with the first child of every node alone."""
    parents = tree.parents.where((tree.ranks == 0) & (tree.depths > 0), -1)
    for _ in range(shape.depth):  # what hangs on nothing goes, too
        above = parents.gather(1, parents.clamp(min=0))
        parents = parents.where((above >= 0) | (parents == 0), -1)
    return replace(tree, parents=parents, ancestors=ancestor_mask(parents, shape.depth))


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_batched_rule_agrees_with_its_scalar_twin(rule, law):
    own, compared, skipped, accepted = RULES[rule](), 0, 0, 0
    for seed in range(40):
        dtype, tolerance = ((torch.float32, 1e-4), (torch.float64, 1e-10))[seed % 2]
        tree, target, shape, _ = random_batch(Random(seed), law, dtype)
        if rule == "block":
            tree, shape = chain_of(tree, shape), replace(shape, siblings=min(shape.siblings, 1))
        uniforms = torch.rand(
            len(tree.tokens), own.uniforms(shape), generator=torch.Generator().manual_seed(seed)
        ).to(dtype)
        outcome = own.accept(tree, target, shape, UniformDraws(uniforms))
        for slot in range(len(uniforms)):
            try:
                path, bonus = scalar_outcome(own, tree, target, shape, uniforms, slot, tolerance)
            except TooClose:
                skipped += 1
                continue
            count = int(outcome.count[slot])
            assert outcome.path[slot, 1 : count + 1].tolist() == path
            assert int(outcome.bonus[slot]) == bonus
            compared, accepted = compared + 1, accepted + bool(path)
    assert compared > 60
    assert accepted > 15
    assert skipped < compared / 5


def test_on_a_chain_traversal_and_transport_are_block_verification():
    for seed in range(20):
        tree, target, shape, _ = random_batch(Random(seed), Law.IID, torch.float64)
        tree, shape = chain_of(tree, shape), replace(shape, siblings=min(shape.siblings, 1))
        uniforms = torch.rand(
            len(tree.tokens), shape.depth + 2, generator=torch.Generator().manual_seed(seed)
        )
        outcomes = [
            rule().accept(tree, target, shape, UniformDraws(uniforms)) for rule in RULES.values()
        ]
        for name in ("path", "count", "bonus"):
            wanted, *others = [getattr(outcome, name) for outcome in outcomes]
            assert all(torch.equal(wanted, other) for other in others)


# --- what each of them gains ----------------------------------------------------------------------


def pair_world(rule, target, draft):
    """Return the expected number of accepted tokens of one level with two drawn siblings."""
    vocab, total = len(target), 0.0
    for first in range(vocab):
        for second in range(vocab):
            chance = draft[first] * draft[second] / (1 - draft[first]) if first != second else 0
            if not chance:
                continue
            parents = torch.tensor([[-1, 0, 0]])
            tree = TokenTree(
                tokens=torch.tensor([[0, first, second]]),
                parents=parents,
                depths=torch.tensor([[0, 1, 1]]),
                ranks=torch.tensor([[0, 0, 1]]),
                ancestors=ancestor_mask(parents, 1),
                draft_probs=torch.tensor([[draft]], dtype=torch.float64),
                draft_rows=torch.zeros(1, 3, dtype=torch.int64),
                sampled=torch.tensor([True]),
                law=Law.WITHOUT_REPLACEMENT,
            )
            logits = torch.tensor(target, dtype=torch.float64).log().expand(1, 3, -1)
            shape = StaticTree(Topology.from_branching([2]), Law.WITHOUT_REPLACEMENT).shape
            _, scale, _ = rule._scales(tree, TargetProbs(logits, sampling_at([1.0])), shape)
            total += chance * float(1 - (1 - scale[0, 1:]).prod())
    return total


def test_transport_serves_what_the_target_wants_before_what_it_has_enough_of():
    target, draft = [0.6, 0.2, 0.1, 0.1], [0.2, 0.09, 0.355, 0.355]
    tried_in_turn = pair_world(TraversalRule(), target, draft)
    # Not more than one minus the sets that the target wants less of: 1 - P(both of 2, 3) + 0.2.
    best = 1 - 2 * 0.355 * 0.355 / 0.645 + 0.2
    assert tried_in_turn < 0.73
    assert pair_world(TransportRule(), target, draft) == pytest.approx(best, abs=1e-9)


# --- in a cycle -----------------------------------------------------------------------------------

TREES = {
    "block": {"name": "chain", "depth": 4},
    "traversal": {"name": "static", "branching": [3, 2, 1]},
    "transport": {"name": "static", "branching": [3, 2, 2]},
    "all": {"name": "static", "branching": [3, 2]},
}


@pytest.mark.parametrize("law", KNOWN_LAWS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_read_on_the_host(rule, law):
    tree, target, shape, _ = random_batch(Random(50), law, torch.float32, filtered=False)
    if rule == "block":
        tree, shape = chain_of(tree, shape), replace(shape, siblings=1)
    own = RULES[rule]()
    uniforms = torch.full((len(tree.tokens), own.uniforms(shape)), 0.4, dtype=torch.float64)
    assert_capturable(lambda: own.accept(tree, target, shape, UniformDraws(uniforms)))
    draws = UniformDraws(uniforms)
    compiled = torch.compile(own.accept, fullgraph=True, backend="eager")
    outcome = compiled(tree, target, shape, draws)
    expected = own.accept(tree, target, shape, UniformDraws(uniforms))
    assert torch.equal(outcome.path, expected.path)
    assert torch.equal(outcome.bonus, expected.bonus)


@pytest.mark.parametrize("rule", RULES)
def test_nan_of_one_slot_stays_in_range_and_in_its_slot(rule):
    tree, target, shape, _ = random_batch(Random(8), Law.IID, torch.float32, filtered=False)
    if rule == "block":
        tree, shape = chain_of(tree, shape), replace(shape, siblings=1)
    own, slots = RULES[rule](), len(tree.tokens)
    sampling = sampling_at([1.0] * slots)
    uniforms = torch.full((slots, own.uniforms(shape)), 0.4)
    clean, spoilt = target.logits, target.logits.clone()
    spoilt[0] = torch.nan
    wanted, got = (
        own.accept(tree, TargetProbs(logits, sampling), shape, UniformDraws(uniforms))
        for logits in (clean, spoilt)
    )
    assert 0 <= int(got.bonus[0]) < clean.shape[2]
    assert bool(((got.path >= 0) & (got.path < shape.nodes)).all())
    for name in ("path", "count", "bonus"):
        assert torch.equal(getattr(wanted, name)[1:], getattr(got, name)[1:])


@pytest.mark.parametrize("rule", RULES)
def test_a_mixed_batch_says_what_each_says_alone_and_greedy_slots_what_plain_decoding_says(
    rule, spec, pair
):
    prompts = [[3, 4, 5, 6, 7], [10, 12, 14], [20, 23, 26, 29]]
    params = [
        SamplingParams(max_new_tokens=14, temperature=t, seed=seed, ignore_eos=True)
        for seed, t in enumerate([0.0, 1.0, 0.7])
    ]

    def decoder(size, **parts):
        return Decoder.from_spec(spec(runtime={"max_batch": size}, **parts), target=pair[0])

    named = {"name": "transport", "levels": "all"} if rule == "all" else rule
    own = {"tree": TREES[rule], "acceptance": named}
    together = decoder(3, **own).generate(prompts, params)
    one = decoder(1, **own)
    alone = [one.generate(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    plain = decoder(1, head="none", tree="none")
    assert alone[0].tokens == plain.generate(prompts[0], params[0]).tokens
    assert (
        one.generate(prompts[1], params[0]).tokens == plain.generate(prompts[1], params[0]).tokens
    )
    assert max(r.stats.tau for r in alone) > 1.3


def test_a_rule_for_chains_refuses_a_tree_in_one_sentence(spec, pair):
    own = spec(tree={"name": "static", "branching": [2]}, acceptance="block")
    with pytest.raises(IncompatibleError, match="is for chains, one candidate per level, but"):
        Decoder.from_spec(own, target=pair[0])


def test_a_rule_for_known_laws_refuses_others():
    with pytest.raises(ValueError, match="does not declare the law one-fixed-one-drawn"):
        assert_lossless(TransportRule(), OneFixedOneDrawn(), settings=SOME)
