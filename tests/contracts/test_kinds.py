"""A small plug-in of every kind decodes, and what comes out is exactly the target's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.decoding.resolving import resolve_for
from eagle.sizing.costing import measure_costs
from eagle.testing import assert_decoder_lossless, check_draft_head, check_tree_builder
from tests.contracts import toys
from tests.exact.tiny import PROMPTS, _pair

FORK = {"name": "static", "tree": [[0], [1], [1, 0]]}
CHAIN = {"name": "chain", "depth": 2}
CASCADE = {"name": "cascade", "first": "ngram", "second": {"name": "mtp"}}
SAMPLED = SamplingParams(temperature=1.0)


@pytest.fixture(scope="module")
def made():
    return toys.registry()


@pytest.fixture
def exact(made):
    """Return a decoder of the tiny target in float64, with some parts replaced."""

    def make(**parts):
        spec = DecoderSpec(**({"tree": CHAIN, "runtime": {"max_batch": 64}} | parts))
        return Decoder.from_spec(spec, registry=made, target=_pair(4, "cpu")[0])

    return make


def proved(decoder, params=SAMPLED, **options):
    assert_decoder_lossless(decoder, PROMPTS, params, tokens=3, tolerance=1e-12, **options)


@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
@pytest.mark.parametrize(
    "head", ["ngram", "draft-model", "at-once", "mtp", "recalls", CASCADE], ids=str
)
def test_a_head_of_every_kind_is_lossless(head, tree, exact):
    proved(exact(head=head, tree=tree))


@pytest.mark.parametrize(
    "tree",
    [CHAIN, FORK, {"name": "dynamic", "nodes": 3, "depth": 2, "top_k": 2}],
    ids=["chain", "fork", "dynamic"],
)
def test_a_head_with_an_end_and_a_vocabulary_of_its_own_is_lossless(tree, exact):
    proved(exact(head="own-end", features="layers", tree=tree))


def test_a_head_of_all_levels_in_one_pass_is_lossless_with_best_first_trees(exact):
    proved(exact(head="at-once", tree={"name": "dynamic", "nodes": 3, "depth": 2, "top_k": 2}))


def test_trees_of_varying_shape_are_lossless(exact):
    proved(exact(head="mtp", tree="varying"))


def test_siblings_by_a_law_of_ones_own_are_lossless(exact):
    proved(exact(head="mtp", tree="steep"))


def test_siblings_by_a_law_for_each_node_are_lossless(exact):
    proved(exact(head="mtp", tree="mixed"))


def test_siblings_of_another_law_than_their_nodes_say_are_caught(exact, monkeypatch):
    build = toys.Mixed.build

    def lying(self, drafter, draws):
        tree = build(self, drafter, draws)
        return tree if tree.node_laws is None else replace(tree, node_laws=tree.node_laws * 0 + 1)

    monkeypatch.setattr(toys.Mixed, "build", lying)
    with pytest.raises(AssertionError, match="not lossless"):
        proved(exact(head="mtp", tree="mixed"))


def test_a_rule_of_continuous_draws_is_lossless(exact):
    proved(exact(head="mtp", acceptance="inverse"))


def test_a_rule_for_chains_is_lossless(exact):
    proved(exact(head="mtp", acceptance="block"))


# --- what each of them is about -------------------------------------------------------------------


@pytest.fixture
def decoder(made, pair):
    def make(**parts):
        return Decoder.from_spec(DecoderSpec(**parts), registry=made, target=pair[0])

    return make


def text(decoder, prompt=(3, 5, 7, 9, 11), tokens=30, **sampling):
    return decoder.generate(list(prompt), max_new_tokens=tokens, ignore_eos=True, **sampling)


@pytest.mark.parametrize("depth", [1, 4])
def test_a_draft_model_with_the_targets_weights_is_always_right(depth, decoder):
    found = text(
        decoder(head="draft-model", tree={"name": "chain", "depth": depth}),
        tokens=1 + 6 * (depth + 1),
    )
    assert found.stats.tau == depth + 1
    assert (
        found.tokens == text(decoder(head="none", tree="none"), tokens=1 + 6 * (depth + 1)).tokens
    )


def test_a_lookup_finds_what_was_said_before_and_forgets_other_requests(decoder):
    looking = decoder(head="ngram", tree={"name": "chain", "depth": 3})
    plain = decoder(head="none", tree="none")
    prompts = [[3, 5, 7, 9, 3, 5, 7, 9, 3, 5], [20, 22], [40, 43, 46]]
    found = looking.generate(prompts, max_new_tokens=16, ignore_eos=True)
    assert [one.tokens for one in found] == [
        one.tokens for one in plain.generate(prompts, max_new_tokens=16, ignore_eos=True)
    ]
    head = looking.resolved.head
    assert head.begun == [(slot, tuple(prompt)) for slot, prompt in enumerate(prompts)]
    whole = {(*prompt, *one.tokens) for prompt, one in zip(prompts, found, strict=True)}
    assert {words for _, words in head.ended} == whole
    # What is remembered is the text, its first token and nothing rejected among it.
    last = looking.generate([6, 7, 8], max_new_tokens=9, ignore_eos=True)
    words = [6, 7, 8, *last.tokens]
    assert head.text[0, : len(words) - 1].tolist() == words[:-1]


def test_a_request_that_is_left_before_its_end_ends_all_the_same(decoder):
    looking = decoder(head="ngram", tree=CHAIN)
    stream = looking.stream([[3, 5, 7], [4, 6, 8]], max_new_tokens=20, ignore_eos=True)
    next(stream)
    stream.close()
    assert [slot for slot, _ in looking.resolved.head.ended] == [0, 1]


def test_a_level_is_told_on_the_host(decoder):
    mtp = decoder(head="mtp", tree={"name": "chain", "depth": 4})
    text(mtp, tokens=6)
    seen = mtp.resolved.head.seen
    assert seen == [1, 2, 3] * (len(seen) // 3)
    assert seen


def test_a_head_is_told_the_targets_folder(made, tmp_path):
    from eagle.testing import tiny_target

    tiny_target().model.save_pretrained(tmp_path / "target")
    spec = DecoderSpec(head="mtp", target={"model": str(tmp_path / "target")})
    assert resolve_for(spec, made).head.checkpoint == tmp_path / "target"


def test_a_parallel_head_is_asked_once_in_a_cycle(decoder, monkeypatch):
    asked = []
    original = toys.Parallel.draft

    def counting(self, tokens, states, step):
        asked.append(step.rows.shape)
        return original(self, tokens, states, step)

    monkeypatch.setattr(toys.Parallel, "draft", counting)
    trees = (
        {"name": "static", "branching": [2, 2]},
        {"name": "dynamic", "nodes": 6, "depth": 2, "top_k": 3},
    )
    for tree in trees:
        asked.clear()
        found = text(decoder(head="at-once", tree=tree), tokens=8)
        assert asked == [(1, 2)] * found.stats.cycles


def test_all_levels_can_be_seen_at_once(decoder):
    from eagle.cycle.drafter import HeadDrafter
    from eagle.plugin.sampling import Sampling

    made = decoder(head="at-once", tree=CHAIN)
    head = made.resolved.head
    state, root, length = torch.randn(2, 64), torch.tensor([3, 4]), torch.tensor([5, 6])
    sampling = Sampling.of([SamplingParams()] * 2, "cpu")
    drafter = HeadDrafter(head, root, state, length, 16, sampling, 3, head)
    levels = drafter.levels()
    assert levels.shape == (2, 3, 64)
    assert torch.equal(drafter.begin(), levels[:, :1])
    below = drafter.expand(torch.tensor([[1, 2]] * 2), torch.tensor([[-1, -1]] * 2))
    assert torch.equal(below, levels[:, 1:2].expand(2, 2, 64))
    other = decoder(head="mtp", tree=CHAIN).resolved.head
    assert HeadDrafter(other, root, state, length, 16, sampling, 3).levels() is None


def test_the_next_tree_is_chosen_by_what_was_read_back(decoder):
    # One slot, which "auto" is only where a pass for the tiny target was once compiled ahead.
    made = decoder(head="draft-model", tree="varying", runtime={"max_batch": 1})
    found = text(made, tokens=12)
    asked = made.resolved.tree.asked
    assert asked[0][0].committed == (None,)
    committed = [seen.committed[0] for seen, _ in asked[1:]]
    assert committed == list(found.stats.accepted_per_cycle[: len(committed)])
    assert {chosen for _, chosen in asked} == {0, 2}, "all that is drafted here is accepted"
    assert all(seen.active == 1 for seen, _ in asked)
    assert found.tokens == text(decoder(head="none", tree="none"), tokens=12).tokens


@pytest.mark.parametrize(
    ("head", "features"),
    [("own-end", "layers"), ("at-once", "last-hidden"), ("recalls", "last-hidden")],
)
def test_what_a_cycle_costs_is_measured_with_a_head_of_every_kind(head, features, made, pair):
    spec = DecoderSpec(head=head, features=features, runtime={"max_length": 40})
    resolved = resolve_for(spec, made, pair[0])
    resolved.head.load(pair[0], resolved.attention)
    costs = measure_costs(resolved, pair[0], lambda what: None)
    assert costs.verify(4) > 0
    assert costs.begin > 0


@pytest.mark.parametrize("head", ["draft-model", "ngram", "at-once", "mtp", "recalls"])
def test_the_toys_keep_the_contract_of_a_head(head, made, pair, decoder):
    component = decoder(head=head, tree=CHAIN).resolved.head
    check_draft_head(component, pair[0], first_token=head in ("draft-model", "ngram"))


def test_a_head_that_is_blind_to_the_first_token_is_noticed(pair, decoder):
    head = decoder(head="mtp", tree=CHAIN).resolved.head
    with pytest.raises(AssertionError, match="blind to the first token"):
        check_draft_head(head, pair[0], first_token=True)


def test_a_lookup_that_never_learns_the_first_token_is_noticed(pair):
    class Deaf(toys.NGram):
        def absorb(self, committed):
            own = committed.own.where(committed.step.rows > 0, -1)
            return super().absorb(replace(committed, own=own))

    head = Deaf(None, None)
    head.load(pair[0], None)
    check_draft_head(head, pair[0])
    with pytest.raises(AssertionError, match="blind to the first token"):
        check_draft_head(head, pair[0], first_token=True)


def test_the_toys_keep_the_contract_of_a_tree():
    check_tree_builder(toys.Varying(None, None))
    check_tree_builder(toys.Fan(toys.Steep()))
    check_tree_builder(toys.Mixed())
