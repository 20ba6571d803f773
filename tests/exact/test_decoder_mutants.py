"""Every way in which the loop around a rule is known to go wrong, and the test that notices it."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from eagle.cache.store import Step, TreeCache
from eagle.cycle import processing
from eagle.cycle.cycle import Cycle
from eagle.cycle.processing import Processing
from eagle.decoding.requests import Request
from eagle.plugin.draws import UniformDraws
from eagle.plugin.sampling import SamplingParams
from eagle.testing import assert_decoder_lossless
from tests.exact.test_mutants import BonusWithoutTemperature
from tests.exact.test_states import (
    assert_drafts_are_the_heads_along_each_path,
    assert_no_uniform_is_read_twice,
    assert_states_are_the_heads_on_the_true_text,
)
from tests.exact.tiny import PROMPTS, exact_decoder

FORK = [[0], [1], [0, 0], [1, 0], [1, 1]]
PARAMS = SamplingParams(temperature=0.5)

# --- what the decoder says: test_decoder_lossless.py ----------------------------------------------


def joint_distribution(decoder):
    assert_decoder_lossless(decoder, PROMPTS, PARAMS, slots=64, tolerance=1e-12)


def joint_distribution_with_processors(decoder):
    chain = [
        RepetitionPenaltyLogitsProcessor(1.5),
        NoRepeatNGramLogitsProcessor(2),
        SequenceBiasLogitsProcessor({(3, 0): 1.5}),
    ]
    assert_decoder_lossless(decoder, PROMPTS, PARAMS, processors=chain, slots=64, tolerance=1e-12)


def a_node_sees_its_siblings(patch, decoder):
    def tree(lengths, depths, ancestors, span, original=Step.tree):
        level = depths[:, :, None] == depths[:, None, :]
        return original(lengths, depths, ancestors | level, span)

    patch.setattr(Step, "tree", tree)


def a_node_does_not_see_its_parent(patch, decoder):
    def tree(lengths, depths, ancestors, span, original=Step.tree):
        above = depths[:, :, None] == depths[:, None, :] + 1
        return original(lengths, depths, ancestors & ~above, span)

    patch.setattr(Step, "tree", tree)


def positions_are_off_by_one(patch, decoder):
    def tree(lengths, depths, ancestors, span, original=Step.tree):
        return original(lengths, depths + 1, ancestors, span)

    patch.setattr(Step, "tree", tree)


def positions_count_nodes(patch, decoder):
    def tree(lengths, depths, ancestors, span, original=Step.tree):
        nodes = torch.arange(depths.shape[1]).expand_as(depths)
        return original(lengths, nodes, ancestors, span)

    patch.setattr(Step, "tree", tree)


def rows_are_compacted_in_the_wrong_order(patch, decoder):
    def compact(self, lengths, path, original=TreeCache.compact):
        # Bottom up, behind the root.
        original(self, lengths, torch.cat((path[:, :1], path[:, 1:].flip(1)), 1))

    patch.setattr(TreeCache, "compact", compact)


def rows_are_not_compacted(patch, decoder):
    patch.setattr(TreeCache, "compact", lambda self, lengths, path: None)


def values_are_not_compacted(patch, decoder):
    def compact(self, lengths, path, original=TreeCache.compact):
        before = [store.clone() for store in self.values]
        original(self, lengths, path)
        for store, old in zip(self.values, before, strict=True):
            store.copy_(old)

    patch.setattr(TreeCache, "compact", compact)


def rows_are_written_where_the_first_slot_stands(patch, decoder):
    def locate(self, step, original=TreeCache.locate):
        if step.slot is None:
            step = replace(step, rows=step.rows[:1].expand_as(step.rows))
        return original(self, step)

    patch.setattr(TreeCache, "locate", locate)


def the_root_stays(patch, decoder):
    def run(self, slots, *args, original=Cycle.run):
        root = slots.root.clone()
        original(self, slots, *args)
        slots.root.copy_(root)

    patch.setattr(Cycle, "run", run)


def a_row_is_lost(patch, decoder):
    def run(self, slots, *args, original=Cycle.run):
        original(self, slots, *args)
        slots.lengths.sub_((slots.outcome[:, 0] > 1).long())

    patch.setattr(Cycle, "run", run)


def the_bonus_token_comes_without_the_temperature(patch, decoder):
    patch.setattr(decoder._cycle, "acceptance", BonusWithoutTemperature())


def the_first_token_comes_without_the_temperature(patch, decoder):
    def first(self, scores, sampling, uniform):
        return self.draws(uniform).categorical(scores.softmax(-1))

    patch.setattr(Cycle, "_first", first)


def the_draft_distribution_is_stale(patch, decoder):
    before = []

    def build(drafter, draws, original=decoder.resolved.tree.build):
        tree = original(drafter, draws)
        before.append(tree.draft_probs)
        return replace(tree, draft_probs=before[-2:][0])

    patch.setattr(decoder.resolved.tree, "build", build)


def the_draft_distribution_is_the_next_slots(patch, decoder):
    def build(drafter, draws, original=decoder.resolved.tree.build):
        tree = original(drafter, draws)
        return replace(tree, draft_probs=tree.draft_probs.roll(1, 0))

    patch.setattr(decoder.resolved.tree, "build", build)


def the_bonus_token_comes_without_processors(patch, decoder):
    def at_nodes(self, logits, tree, original=Processing.at_nodes):
        # The nodes of the last level, where only a bonus token can follow.
        last = tree.depths == tree.depths.max()
        return logits.where(last[..., None], original(self, logits, tree))

    patch.setattr(Processing, "at_nodes", at_nodes)


def the_first_token_comes_without_processors(patch, decoder):
    patch.setattr(Processing, "after_text", lambda self, slot, logits: logits)


def processors_see_the_text_without_the_path(patch, decoder):
    def apply(processors, ids, scores, original=processing._apply):
        shortest = min(map(len, PROMPTS)) + 1
        return original(processors, ids[:, :shortest], scores)

    patch.setattr(processing, "_apply", apply)


def processors_see_the_path_of_another_node(patch, decoder):
    def apply(processors, ids, scores, original=processing._apply):
        return original(processors, ids.roll(1, 0), scores)

    patch.setattr(processing, "_apply", apply)


def processors_see_the_text_of_another_slot(patch, decoder):
    def at_nodes(self, logits, tree, original=Processing.at_nodes):
        texts = [text for text, _ in self.slots.values()]
        shifted = zip(self.slots.items(), texts[1:] + texts[:1], strict=True)
        return original(
            Processing({s: (text, own) for (s, (_, own)), text in shifted}), logits, tree
        )

    patch.setattr(Processing, "at_nodes", at_nodes)


def processors_come_after_the_temperature(patch, decoder):
    def apply(processors, ids, scores, original=processing._apply):
        return original(processors, ids, scores / PARAMS.temperature) * PARAMS.temperature

    patch.setattr(processing, "_apply", apply)


# --- what the head is told: test_states.py --------------------------------------------------------


def absorbing(change):
    """Make a mutant that changes what the head absorbs at commit, or what comes of it."""

    @wraps(change)
    def mutant(patch, decoder):
        head = decoder.resolved.head

        def absorb(committed, original=head.absorb):
            if committed.step.slot is None and committed.step.segments is None:
                return change(decoder, original, committed)
            return original(committed)

        patch.setattr(head, "absorb", absorb)

    return mutant


@absorbing
def the_head_is_fed_the_unshifted_token_at_commit(decoder, absorb, committed):
    roots = decoder.loop.seats.slots.root[: len(committed.tokens), None]
    unshifted = torch.cat((roots, committed.tokens[:, :-1]), 1)
    return absorb(replace(committed, tokens=unshifted))


@absorbing
def the_head_is_fed_the_next_feature_at_commit(decoder, absorb, committed):
    return absorb(replace(committed, features=committed.features.roll(-1, 1)))


@absorbing
def the_head_is_fed_its_own_feature_at_commit(decoder, absorb, committed):
    features = committed.features
    own = decoder.loop.seats.slots.state[: len(features), None].expand_as(features)
    return absorb(replace(committed, features=torch.cat((features[:, :1], own[:, 1:]), 1)))


@absorbing
def the_head_keeps_an_earlier_state(decoder, absorb, committed):
    return absorb(committed).roll(1, 1)


@absorbing
def the_heads_positions_are_off_by_one_at_commit(decoder, absorb, committed):
    step = committed.step
    return absorb(replace(committed, step=replace(step, positions=step.positions + 1)))


def the_features_are_those_of_the_first_nodes(patch, decoder):
    def extract(last, hidden, original=decoder.resolved.features.extract):
        return original(last, hidden).roll(1, 1)

    patch.setattr(decoder.resolved.features, "extract", extract)


def extending(change):
    """Make a mutant that changes how drafted nodes are drafted from."""

    @wraps(change)
    def mutant(patch, decoder):
        head = decoder.resolved.head

        def extend(drafted, original=head.extend):
            changed = change(drafted.tokens, drafted.states, drafted.step)
            tokens, states, step = changed
            return original(replace(drafted, tokens=tokens, states=states, step=step))

        patch.setattr(head, "extend", extend)

    return mutant


@extending
def a_draft_sees_its_siblings(tokens, states, step):
    return tokens, states, replace(step, tail=torch.ones_like(step.tail))


@extending
def drafts_are_off_by_one(tokens, states, step):
    return tokens, states, replace(step, positions=step.positions + 1)


@extending
def drafts_overwrite_each_other(tokens, states, step):
    rows = step.rows - step.rows[:, :1] + step.lengths[:, None]
    return tokens, states, replace(step, rows=rows)


@extending
def a_draft_extends_its_siblings_parent(tokens, states, step):
    return tokens, states.roll(1, 1), step


# --- what is drawn: test_states.py ----------------------------------------------------------------


def every_cycle_reads_the_same_uniforms(patch, decoder):
    def uniforms(self, count):
        generator = torch.Generator().manual_seed(self.params.seed)
        return torch.rand(count, generator=generator, dtype=torch.float64)

    patch.setattr(Request, "uniforms", uniforms)


def every_draw_reads_the_same_uniform(patch, decoder):
    def following(self, count):
        return self.uniforms[:, :count]

    patch.setattr(UniformDraws, "read", following)


def every_request_reads_the_same_uniforms(patch, decoder):
    def start(self):
        self._generator = np.random.Generator(np.random.PCG64(0))

    patch.setattr(Request, "start", start)


TOP_K = {"name": "static", "tree": FORK, "sampling": "top-k"}
SAMPLED = {"name": "chain", "depth": 1}
WIDE = {"name": "static", "tree": [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0]]}

MUTANTS = [
    (
        joint_distribution,
        TOP_K,
        [
            a_node_sees_its_siblings,
            a_node_does_not_see_its_parent,
            positions_are_off_by_one,
            positions_count_nodes,
            rows_are_compacted_in_the_wrong_order,
            rows_are_not_compacted,
            values_are_not_compacted,
            rows_are_written_where_the_first_slot_stands,
            the_root_stays,
            a_row_is_lost,
            the_bonus_token_comes_without_the_temperature,
            the_first_token_comes_without_the_temperature,
        ],
    ),
    (
        joint_distribution,
        SAMPLED,
        [the_draft_distribution_is_stale, the_draft_distribution_is_the_next_slots],
    ),
    (
        joint_distribution_with_processors,
        TOP_K,
        [
            the_bonus_token_comes_without_processors,
            the_first_token_comes_without_processors,
            processors_see_the_text_without_the_path,
            processors_see_the_path_of_another_node,
            processors_see_the_text_of_another_slot,
            processors_come_after_the_temperature,
        ],
    ),
    (
        assert_states_are_the_heads_on_the_true_text,
        WIDE,
        [
            the_head_is_fed_the_unshifted_token_at_commit,
            the_head_is_fed_the_next_feature_at_commit,
            the_head_is_fed_its_own_feature_at_commit,
            the_head_keeps_an_earlier_state,
            the_heads_positions_are_off_by_one_at_commit,
            the_features_are_those_of_the_first_nodes,
        ],
    ),
    (
        assert_drafts_are_the_heads_along_each_path,
        WIDE,
        [
            a_draft_sees_its_siblings,
            drafts_are_off_by_one,
            drafts_overwrite_each_other,
            a_draft_extends_its_siblings_parent,
        ],
    ),
    (
        assert_no_uniform_is_read_twice,
        WIDE,
        [
            every_cycle_reads_the_same_uniforms,
            every_draw_reads_the_same_uniform,
            every_request_reads_the_same_uniforms,
        ],
    ),
]
CAUGHT = r"not lossless|more than the text|another course|asked again|is wrong|was read twice"


@pytest.mark.parametrize(
    ("check", "tree", "mutant"),
    [
        pytest.param(check, tree, mutant, id=mutant.__name__)
        for check, tree, mutants in MUTANTS
        for mutant in mutants
    ],
)
def test_mutant_is_caught(check, tree, mutant, monkeypatch):
    decoder = exact_decoder(**tree)
    mutant(monkeypatch, decoder)
    with pytest.raises(AssertionError, match=CAUGHT):
        check(decoder)


@pytest.mark.parametrize(("check", "tree"), [(check, tree) for check, tree, _ in MUTANTS])
def test_without_a_mutant_nothing_is_caught(check, tree):
    check(exact_decoder(**tree))
