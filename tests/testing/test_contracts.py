"""The public checks: shipped strategies pass, components that break a contract fail."""

from dataclasses import replace

import pytest
import torch
from hypothesis import settings

from eagle.plugin.draws import Draws
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Law, Role
from eagle.plugin.tree import Acceptance
from eagle.testing import (
    check_acceptance_rule,
    check_attention_backend,
    check_draft_head,
    check_feature_extractor,
    check_tree_builder,
    tiny_head,
    tiny_target,
)
from tests.contracts import toys

TREES = [
    ("none", {}),
    ("chain", {"depth": 3}),
    ("chain", {"depth": 3, "sampling": "top-k"}),
    ("static", {"branching": [3, 2, 1]}),
    ("static", {"tree": "reference-25", "sampling": "top-k"}),
]

FEW = settings(max_examples=30, derandomize=True, deadline=None)


def build(role, name, **settings):
    strategy = default_registry().get(role, name).strategy
    return strategy.build(strategy.config(**settings), BuildContext())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    target = tiny_target()
    folder = tmp_path_factory.mktemp("head")
    tiny_head(target).save(folder)
    head = build(Role.HEAD, "eagle", weights=str(folder))
    head.feature_size(target.info)
    head.load(target, build(Role.ATTENTION, "sdpa"))
    return target, head


@pytest.mark.parametrize(("name", "config"), TREES)
def test_shipped_trees_keep_the_contract(name, config):
    check_tree_builder(build(Role.TREE, name, **config))


def test_the_shipped_head_keeps_the_contract(loaded):
    check_draft_head(loaded[1], loaded[0])


def test_the_shipped_extractor_keeps_the_contract(loaded):
    check_feature_extractor(build(Role.FEATURES, "last-hidden"), loaded[0])


def test_the_shipped_attention_keeps_the_contract():
    check_attention_backend(build(Role.ATTENTION, "sdpa"))
    check_attention_backend(build(Role.ATTENTION, "sdpa"), dtype=torch.bfloat16, tolerance=0.02)


def test_the_shipped_rule_keeps_the_contract():
    check_acceptance_rule(build(Role.ACCEPTANCE, "speculative"), settings=FEW)


class Changed:
    """A component with some attributes replaced."""

    def __init__(self, inner, **changes):
        self._inner = inner
        self.__dict__.update(changes)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def _broken_tree(change):
    inner = build(Role.TREE, "static", branching=[3, 2, 1], sampling="top-k")
    return Changed(inner, build=lambda drafter, draws: change(inner.build(drafter, draws)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, parents=t.parents.roll(1, 1)), "parent"),
        (lambda t: replace(t, depths=t.depths + 1), "deeper"),
        (lambda t: replace(t, ranks=torch.zeros_like(t.ranks)), "same rank"),
        (lambda t: replace(t, tokens=t.tokens.clone().fill_(5)), "not the root|same token"),
        (lambda t: replace(t, ancestors=torch.ones_like(t.ancestors)), "others than its ancestors"),
        (lambda t: replace(t, tokens=t.tokens[:, :-1]), "nodes"),
        (lambda t: replace(t, tokens=t.tokens + t.depths * 97), "none of the 97"),
        (lambda t: replace(t, ranks=t.ranks.int()), "ranks is not int64"),
        (lambda t: replace(t, ancestors=t.ancestors.byte()), "ancestors is not bool"),
        (lambda t: t.tokens, "no TokenTree"),
        (lambda t: replace(t, tokens=t.tokens + torch.randint(1, (1,))), "own generator"),
        (lambda t: replace(t, sampled=torch.ones(3, dtype=torch.bool)), "greedy slot"),
    ],
)
def test_a_broken_tree_fails(change, message):
    with pytest.raises(AssertionError, match=message):
        check_tree_builder(_broken_tree(change))


def test_a_tree_that_hides_its_law_fails():
    inner = build(Role.TREE, "static", branching=[3, 2, 1])
    with pytest.raises(AssertionError, match="no such law"):
        check_tree_builder(Changed(inner, laws=frozenset({Law.TOP_K})))


def test_attention_that_ignores_the_tree_fails():
    inner = build(Role.ATTENTION, "sdpa")

    def plan(step, *rest, **options):
        return inner.plan(replace(step, tail=torch.ones_like(step.tail)), *rest, **options)

    with pytest.raises(AssertionError, match="attention is off"):
        check_attention_backend(Changed(inner, plan=plan))


def test_a_head_that_sees_siblings_fails(loaded):
    target, head = loaded

    def extend(drafted):
        step = replace(drafted.step, tail=torch.ones_like(drafted.step.tail))
        return head.extend(replace(drafted, step=step))

    with pytest.raises(AssertionError, match="sibling"):
        check_draft_head(Changed(head, extend=extend), target)


@pytest.mark.parametrize("method", ["absorb", "extend", "logits"])
def test_a_head_that_reads_on_the_host_fails_wherever_it_does(method, loaded):
    target, head = loaded

    def reading(given):
        found = getattr(head, method)(given)
        found.sum().item()
        return found

    with pytest.raises(AssertionError, match="on the host"):
        check_draft_head(Changed(head, **{method: reading}), target)


def test_a_parallel_head_that_reads_on_the_host_fails(pair):
    class Reading(toys.Parallel):
        def draft(self, tokens, states, step):
            return super().draft(tokens + int(tokens[0] > 99), states, step)

    head = Reading(None, None)
    head.load(pair[0], None)
    with pytest.raises(AssertionError, match="on the host"):
        check_draft_head(head, pair[0])


def test_an_extractor_that_reads_on_the_host_fails(loaded):
    inner = build(Role.FEATURES, "last-hidden")
    reading = Changed(inner, extract=lambda last, hidden: last * float(last.abs().max() > 0))
    with pytest.raises(AssertionError, match="on the host"):
        check_feature_extractor(reading, loaded[0])


def test_an_extractor_that_mixes_tokens_fails(loaded):
    inner = build(Role.FEATURES, "last-hidden")
    mixed = Changed(inner, extract=lambda last, hidden: last + last.mean(1, keepdim=True))
    with pytest.raises(AssertionError, match="other tokens"):
        check_feature_extractor(mixed, loaded[0])


def test_a_rule_with_chance_of_its_own_fails():
    inner = build(Role.ACCEPTANCE, "speculative")

    def accept(*given) -> Acceptance:
        torch.rand(1)
        return inner.accept(*given)

    with pytest.raises(AssertionError, match="own generator"):
        check_acceptance_rule(Changed(inner, accept=accept), settings=FEW)


def test_a_rule_that_accepts_everything_fails():
    inner = build(Role.ACCEPTANCE, "speculative")

    class Always:
        """Draws for which every candidate is accepted."""

        def __init__(self, draws: Draws):
            self.categorical = draws.categorical

        def bernoulli(self, probs):
            return probs > 0

    def accept(tree, target, shape, draws) -> Acceptance:
        return inner.accept(tree, target, shape, Always(draws))

    with pytest.raises(AssertionError):
        check_acceptance_rule(Changed(inner, accept=accept, scalar=None), settings=FEW)
