from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from eagle import Decoder
from eagle.plugin import (
    BuildContext,
    IncompatibleError,
    Law,
    Sampling,
    SamplingParams,
    TargetInfo,
    UniformDraws,
)
from eagle.testing import assert_lossless, check_tree_builder
from eagle_plugins.acceptance.speculative import SpeculativeRule
from eagle_strategies.trees.best_first import BEST_FIRST, BestFirstConfig, BestFirstTree

NO_DRAWS = UniformDraws(torch.empty(2, 0))
FEW = settings(
    max_examples=12,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


def builder(**given):
    return BestFirstTree(BestFirstConfig(**given))


class Text:
    """Draft logits that depend on the path, or on its length alone where levels are drafted."""

    draft_vocab = None

    def __init__(self, parallel=0, vocab=9, temperature=0.0, sharpness=3.0):
        self.sampling = Sampling.of([SamplingParams(temperature=temperature)] * 2, "cpu")
        self.root, self.vocab, self.sharpness = torch.arange(2), vocab, sharpness
        self.parallel, self.paths, self.asked = parallel, [[], []], 0

    def logits(self, slot, path):
        if self.parallel:
            path = ("level", len(path))
        seed = torch.Generator().manual_seed(hash((slot, *path)) % 2**31)
        return torch.randn(self.vocab, generator=seed) * self.sharpness

    def levels(self):
        if not self.parallel:
            return None
        rows = [[self.logits(s, (0,) * d) for d in range(self.parallel)] for s in range(2)]
        return torch.stack([torch.stack(row) for row in rows])

    def begin(self):
        return torch.stack([self.logits(slot, ()) for slot in range(2)])[:, None]

    def expand(self, tokens, parents, *, level=None):
        self.asked += tokens.shape[1]
        rows = []
        for slot, known in enumerate(self.paths):
            above = zip(tokens[slot].tolist(), parents[slot].tolist(), strict=True)
            new = [((*known[at], token) if at >= 0 else (token,)) for token, at in above]
            known += new
            rows.append(torch.stack([self.logits(slot, path) for path in new]))
        return torch.stack(rows)


def paths_of(tree, slot):
    paths = {0: ()}
    for node in range(1, tree.tokens.shape[1]):
        above = paths[int(tree.parents[slot, node])]
        paths[node] = (*above, int(tree.tokens[slot, node]))
    return set(paths.values()) - {()}


def likeliest(drafter, slot, depth, nodes):
    """Return the best nodes of all possible ones, by looking at every path."""
    found = []
    for length in range(1, depth + 1):
        for path in product(range(drafter.vocab), repeat=length):
            value = sum(
                float(drafter.logits(slot, path[:place]).log_softmax(-1)[token])
                for place, token in enumerate(path)
            )
            found.append((value, path))
    return {path for _, path in sorted(found, reverse=True)[:nodes]}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sampling": "top-k"},
        {"nodes": 1, "depth": 1, "siblings": 1},
        {"nodes": 20, "depth": 4, "siblings": 3, "width": 5},
        {"nodes": 127, "depth": 8, "siblings": 16, "width": 4},
        {"nodes": 20, "depth": 4, "siblings": 3, "width": 5, "least": 0.1},
        {"nodes": 20, "depth": 4, "siblings": 3, "width": 5, "least": 0.9},
    ],
    ids=str,
)
def test_keeps_the_contract_of_tree_builders(given):
    check_tree_builder(builder(**given), cycles=2)


@pytest.mark.parametrize("parallel", [0, 3], ids=["one by one", "all levels at once"])
def test_keeps_the_likeliest_nodes_of_all_that_there_are(parallel):
    drafter = Text(parallel, vocab=5)
    # As wide as any level: then nothing is left out.
    tree = builder(nodes=17, depth=3, siblings=5, width=17).build(drafter, NO_DRAWS)
    for slot in range(2):
        assert paths_of(tree, slot) == likeliest(drafter, slot, 3, 17)


def test_of_levels_drafted_at_once_the_best_of_128_nodes_needs_no_extending():
    drafter = Text(parallel=3, vocab=16)
    tree = builder(nodes=128, depth=3, siblings=16, width=4).build(drafter, NO_DRAWS)
    assert drafter.asked == 0
    for slot in range(2):
        assert paths_of(tree, slot) == likeliest(drafter, slot, 3, 128)


def test_is_narrow_and_deep_where_a_draw_leaves_no_doubt():
    sure, unsure = (
        builder(nodes=8, depth=8, siblings=4, width=4).build(
            Text(temperature=1.0, sharpness=sharpness), NO_DRAWS
        )
        for sharpness in (40.0, 0.1)
    )
    assert int(sure.depths.amax()) == 8
    assert int(unsure.depths.amax()) < 8


def values_of(drafter, slot, depth):
    """Return the values of all paths of up to so many tokens."""
    found = {(): 1.0}
    for length in range(1, depth + 1):
        for path in product(range(drafter.vocab), repeat=length):
            chance = drafter.logits(slot, path[:-1]).softmax(-1)[path[-1]]
            found[path] = found[path[:-1]] * float(chance)
    return found


@pytest.mark.parametrize("least", [0.02, 0.1, 0.3])
def test_of_one_slot_all_nodes_are_kept_that_are_likely_enough_and_no_other(least):
    class One(Text):
        def __init__(self):
            super().__init__(vocab=5)
            self.root, self.paths = self.root[:1], self.paths[:1]
            self.sampling = Sampling.of([SamplingParams(temperature=0.0)], "cpu")

        def begin(self):
            return super().begin()[:1]

    drafter = One()
    # As wide and deep as may be; and whatever may have a child that is kept is extended.
    wide = builder(nodes=100, depth=4, siblings=5, width=60, least=least, extend=least)
    tree = wide.build(drafter, NO_DRAWS)
    values = values_of(drafter, 0, 4)
    kept = {path for path, value in values.items() if value >= least and path}
    assert paths_of(tree, 0) == kept
    assert tree.tokens.shape[1] == 1 + len(kept) < 101
    # One pass for each level of which anything is extended, over no more nodes than that takes.
    assert drafter.asked == sum(
        value >= least for path, value in values.items() if 0 < len(path) < 4
    )


def test_what_is_not_worth_another_pass_is_not_extended():
    sure, unsure = Text(sharpness=40.0), Text(sharpness=0.1)
    given = {"nodes": 20, "depth": 4, "siblings": 3, "width": 4, "least": 0.1}
    deep, flat = (builder(**given).build(text, NO_DRAWS) for text in (sure, unsure))
    assert int(deep.depths.amax()) == 4
    assert (int(flat.depths.amax()), unsure.asked) == (1, 0)
    assert not builder(**given).capturable


def test_slots_have_as_many_nodes_as_the_surest_of_them():
    text = Text(sharpness=3.0)
    given = {"nodes": 40, "depth": 3, "siblings": 4, "width": 9, "least": 0.05, "extend": 0.05}
    tree = builder(**given).build(text, NO_DRAWS)
    fewest = [
        sum(value >= 0.05 for path, value in values_of(text, slot, 3).items() if path)
        for slot in range(2)
    ]
    assert tree.tokens.shape[1] == 1 + max(fewest)


@pytest.mark.parametrize(
    "given",
    [
        {"nodes": 6, "depth": 2, "siblings": 2, "width": 2, "least": 0.3},
        {"nodes": 3, "depth": 2, "siblings": 2, "width": 1},
        {"nodes": 3, "depth": 2, "siblings": 2, "width": 2, "sampling": "top-k"},
    ],
    ids=str,
)
def test_is_lossless_though_it_is_chosen_after_looking_at_what_was_drawn(given):
    assert_lossless(SpeculativeRule(), builder=builder(**given), settings=FEW)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nodes": 200, "depth": 2}, "nodes is 200, but depth 2, siblings 10 and width 10 draft"),
        ({"depth": 900, "width": 20}, "have the draft head extend 17980 nodes"),
        ({"sampling": "iid"}, "top-k"),
        ({"extend": 0.5}, "extend goes with least only"),
        ({"least": 0.2, "extend": 0.1}, "extend is 0.1, less than least, which is 0.2"),
        ({"least": 0.2, "sampling": "top-k"}, "least goes with sampling: shared-noise, not top-k"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        BestFirstConfig(**given)


def test_more_than_there_is_to_draft_is_refused():
    target = TargetInfo(name="t", hidden_size=8, vocab_size=4, layers=1, max_positions=8)
    with pytest.raises(IncompatibleError, match=r"tree\.siblings is 10, but the vocabulary"):
        BEST_FIRST.build(BestFirstConfig(), BuildContext(target))
    with pytest.raises(IncompatibleError, match="depth is 5, but the head drafts only 3 levels"):
        builder(nodes=5, depth=5, siblings=3).build(Text(parallel=3), NO_DRAWS)


def test_draws_by_shared_noise_above_temperature_zero():
    tree = builder(nodes=8, depth=3, siblings=3).build(Text(temperature=1.0), NO_DRAWS)
    assert tree.law == Law.SHARED_NOISE
    fixed = builder(nodes=8, depth=3, siblings=3, sampling="top-k")
    assert fixed.build(Text(temperature=1.0), NO_DRAWS).law == Law.TOP_K


def test_drafted_counts_the_nodes_that_there_were_and_not_those_that_were_declared(spec, pair):
    given = {"nodes": 20, "depth": 4, "siblings": 3, "width": 4, "least": 0.1}
    decoder = Decoder.from_spec(spec(tree={"name": "best-first", **given}), target=pair[0])
    tree, sizes = decoder._cycle.tree, []
    build = tree.build

    def noted(drafter, draws):
        made = build(drafter, draws)
        sizes.append(made.tokens.shape[1] - 1)
        return made

    tree.build = noted
    stats = decoder.generate([1, 2, 3], max_new_tokens=24, ignore_eos=True).stats
    assert stats.cycles == len(sizes)
    assert stats.drafted == sum(sizes) < 20 * stats.cycles
