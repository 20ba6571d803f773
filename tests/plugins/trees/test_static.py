from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from eagle.errors import IncompatibleError, SpecError
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.draws import UniformDraws
from eagle.plugin.roles import BuildContext, Law, TargetInfo
from eagle.plugin.sampling import Sampling
from eagle.plugin.tree import TreeShape, ancestor_mask
from eagle.testing.oracle import TableDrafter
from eagle_plugins.trees.chain import CHAIN, ChainConfig
from eagle_plugins.trees.none import NONE
from eagle_plugins.trees.static import STATIC, StaticConfig

VOCAB = 5
PATHS = [[0], [1], [2], [0, 0], [0, 1], [2, 0], [2, 0, 0]]


class RecordingDrafter(TableDrafter):
    """Notes what is expanded."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def begin(self):
        self.calls.append("begin")
        return super().begin()

    def expand(self, tokens, parents):
        self.calls.append((tokens.tolist(), parents.tolist()))
        return super().expand(tokens, parents)


def sampling_at(*temperatures):
    slots = len(temperatures)
    return Sampling(
        temperature=torch.tensor(temperatures),
        top_k=torch.zeros(slots, dtype=torch.int64),
        top_p=torch.ones(slots),
        min_p=torch.zeros(slots),
        greedy=not any(temperatures),
        filtered=False,
    )


def tables(depth=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(VOCAB**level, VOCAB, generator=generator) for level in range(depth + 1)]


def build(tree, *temperatures, logits=None, uniforms=None):
    drafter = RecordingDrafter(logits or tables(), sampling_at(*temperatures), 3)
    if uniforms is None:
        generator = torch.Generator().manual_seed(1)
        uniforms = torch.rand(len(temperatures), tree.uniforms, generator=generator)
    draws = UniformDraws(uniforms)
    return tree.build(drafter, draws), drafter, draws


def texts(tree, slot=0):
    """Return the drafted text of every node, None for padding."""
    found = [()]
    for node in range(1, tree.tokens.shape[1]):
        parent = int(tree.parents[slot, node])
        found.append(None if parent < 0 else (*found[parent], int(tree.tokens[slot, node])))
    return found


def code(text):
    return sum(token * VOCAB**place for place, token in enumerate(reversed(text)))


def test_top_k_takes_the_candidates_that_the_ranks_name():
    tree, _, draws = build(StaticTree(Topology.from_paths(PATHS), Law.TOP_K), 0.0)
    logits = tables()
    expected = {(): ()}
    for path in sorted(PATHS, key=len):
        above = expected[tuple(path[:-1])]
        order = logits[len(above)][code(above)].argsort(descending=True).tolist()
        expected[tuple(path)] = (*above, order[path[-1]])
    assert texts(tree) == [expected[path] for path in Topology.from_paths(PATHS).paths]
    assert tree.tokens[0, 0] == 3
    assert (tree.draft_probs, tree.draft_rows, tree.sampled, tree.law) == (
        None,
        None,
        None,
        Law.TOP_K,
    )
    assert draws.used == 0


def test_skipped_ranks_are_siblings_in_order():
    tree, _, _ = build(StaticTree(Topology.from_paths([[1], [3]]), Law.TOP_K), 0.0)
    order = tables()[0][0].argsort(descending=True).tolist()
    assert tree.tokens[0, 1:].tolist() == [order[1], order[3]]
    assert tree.ranks[0].tolist() == [0, 0, 1]


def test_only_nodes_with_children_are_expanded_level_by_level():
    tree, drafter, _ = build(StaticTree(Topology.from_paths(PATHS), Law.TOP_K), 0.0, 0.0)
    begin, second, third = drafter.calls
    assert begin == "begin"
    assert second == (tree.tokens[:, [1, 3]].tolist(), [[-1, -1]] * 2)
    # [2, 0] is below [2], the second node that was expanded.
    assert third == (tree.tokens[:, [6]].tolist(), [[1]] * 2)


@pytest.mark.parametrize("temperatures", [(0.0,), (1.0,), (0.0, 1.0, 0.5)])
def test_trees_are_consistent(temperatures):
    builder = StaticTree(Topology.from_paths(PATHS))
    tree, _, draws = build(builder, *temperatures)
    slots = len(temperatures)
    assert builder.shape == TreeShape(8, 3, 3, 3, 4)
    assert tree.tokens.shape == tree.parents.shape == tree.depths.shape == (slots, 8)
    assert torch.equal(tree.ancestors, ancestor_mask(tree.parents, 3))
    assert tree.depths[0].tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
    assert draws.used == (builder.uniforms if any(temperatures) else 0)
    assert builder.uniforms == 7


def test_draft_rows_lead_to_the_distribution_that_children_were_drawn_from():
    tree, _, _ = build(StaticTree(Topology.from_paths(PATHS)), 0.5)
    assert tree.draft_probs.shape == (1, 4, VOCAB)
    assert tree.law is Law.WITHOUT_REPLACEMENT
    logits = tables()
    for node, text in enumerate(texts(tree)):
        if node in (0, 1, 3, 6):
            row = int(tree.draft_rows[0, node])
            expected = (logits[len(text)][code(text)] / 0.5).softmax(-1)
            torch.testing.assert_close(tree.draft_probs[0, row], expected)


def test_siblings_drawn_without_replacement_are_distinct():
    builder = StaticTree(Topology.from_branching([VOCAB]))
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        tree, _, _ = build(builder, 1.0, uniforms=torch.rand(1, VOCAB, generator=generator))
        assert sorted(tree.tokens[0, 1:].tolist()) == list(range(VOCAB))


def test_in_a_mixed_batch_every_slot_is_drafted_as_alone():
    builder = StaticTree(Topology.from_paths(PATHS))
    uniforms = torch.rand(3, builder.uniforms, generator=torch.Generator().manual_seed(3))
    mixed, _, _ = build(builder, 0.0, 1.0, 2.0, uniforms=uniforms)
    assert mixed.sampled.tolist() == [False, True, True]
    for slot, temperature in enumerate((0.0, 1.0, 2.0)):
        alone, _, _ = build(builder, temperature, uniforms=uniforms[slot : slot + 1])
        for name in ("tokens", "parents", "depths", "ranks", "ancestors"):
            assert torch.equal(getattr(mixed, name)[slot], getattr(alone, name)[0])
        if temperature:
            assert torch.equal(mixed.draft_probs[slot], alone.draft_probs[0])


def test_a_child_drawn_from_nothing_is_padding_and_so_is_what_is_below_it():
    logits = tables()
    logits[0] = torch.full((1, VOCAB), -torch.inf)
    logits[0][0, 4] = 0.0
    topology = Topology.from_paths([[0], [1], [1, 0], [0, 0]])
    tree, _, _ = build(StaticTree(topology), 1.0, logits=logits)
    assert tree.tokens[0, 1] == 4
    assert tree.parents[0].tolist() == [-1, 0, -1, 1, -1]
    assert torch.equal(tree.ancestors, ancestor_mask(tree.parents, 2))
    greedy, _, _ = build(StaticTree(topology), 0.0, logits=logits)
    assert greedy.parents[0].tolist() == [-1, 0, 0, 1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_from_the_head_stays_in_range(temperature):
    logits = tables()
    logits[1][:] = torch.nan
    tree, _, _ = build(StaticTree(Topology.from_paths(PATHS)), temperature, logits=logits)
    assert bool(((tree.tokens >= 0) & (tree.tokens < VOCAB)).all())
    if temperature:
        assert tree.parents[0].tolist() == [-1, 0, 0, 0, -1, -1, -1, -1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_read_on_the_host(temperature):
    builder = StaticTree(Topology.from_paths(PATHS))

    class MetaDrafter:
        sampling = Sampling(
            **{
                name: value.to("meta") if isinstance(value, torch.Tensor) else value
                for name, value in vars(sampling_at(temperature, temperature)).items()
            }
        )
        root = torch.zeros(2, dtype=torch.int64, device="meta")

        def begin(self):
            return torch.zeros(2, 1, VOCAB, device="meta")

        def expand(self, tokens, parents):
            return torch.zeros(*tokens.shape, VOCAB, device="meta")

    # A meta tensor has a shape and no content: reading a value of it raises.
    draws = UniformDraws(torch.zeros(2, builder.uniforms, device="meta"))
    tree = builder.build(MetaDrafter(), draws)
    assert tree.tokens.shape == (2, 8)


def test_index_tensors_are_made_once_per_device():
    builder = StaticTree(Topology.from_paths(PATHS), Law.TOP_K)
    first, _, _ = build(builder, 0.0)
    second, _, _ = build(builder, 0.0)
    assert first.depths.data_ptr() == second.depths.data_ptr()


def test_a_rank_beyond_the_vocabulary_is_refused():
    builder = StaticTree(Topology.from_branching([VOCAB + 1]))
    with pytest.raises(IncompatibleError, match=r"rank 5, but .* only 5 tokens"):
        build(builder, 0.0)
    target = TargetInfo("tiny", hidden_size=8, vocab_size=VOCAB, layers=1, max_positions=64)
    config = StaticConfig(branching=[VOCAB + 1])
    with pytest.raises(IncompatibleError, match="rank 5"):
        STATIC.build(config, BuildContext(target=target))
    assert STATIC.build(config, BuildContext()).shape.nodes == VOCAB + 2


def laws_of(strategy):
    return strategy.build(strategy.config(), BuildContext()).laws


def test_declarations_follow_the_configured_law():
    both = frozenset({Law.TOP_K, Law.WITHOUT_REPLACEMENT})
    sampled = STATIC.build(StaticConfig(tree="reference-25"), BuildContext())
    fixed = STATIC.build(StaticConfig(tree="reference-25", sampling="top-k"), BuildContext())
    assert (sampled.laws, sampled.uniforms) == (both, 25)
    assert (fixed.laws, fixed.uniforms) == (frozenset({Law.TOP_K}), 0)
    assert sampled.shape == TreeShape(26, 5, 4, 10, 11)
    assert fixed.shape == TreeShape(26, 5, 4, 10, 0)
    assert laws_of(CHAIN) == laws_of(STATIC) == both


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tree": [[0]], "branching": [1]}, "either 'tree'"),
        ({"tree": []}, "at least one path"),
        ({"tree": [[0], [1, 0]]}, r"path \[1, 0\] has no parent"),
        ({"tree": "refrence-25"}, "Did you mean 'reference-25'"),
        ({"tree": [[1]]}, r"path \[1\] skips rank 0.*add \[0\], or use 'sampling: top-k'"),
        ({"tree": [[True]]}, "integer"),
        ({"branching": [1.5]}, "integer"),
        ({"branching": [0]}, "needs at least 1"),
        ({"branching": [2], "sampling": "iid"}, "'top-k', 'without-replacement' or 'shared-noise'"),
        ({"branching": [2], "depth": 3}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        StaticConfig(**settings)


def test_the_default_fits_the_device():
    assert StaticConfig().topology(torch.device("cpu")).nodes == 6
    for config in (StaticConfig(), StaticConfig(tree="auto")):
        assert config.topology(torch.device("cuda")).nodes == 26
        assert STATIC.build(config, BuildContext(device=torch.device("cpu"))).shape.nodes == 6
    for given in ({}, {"tree": "auto"}):
        config = StaticConfig(branching=[2], **given)
        assert config.topology(torch.device("cpu")).nodes == 3


def test_skipped_ranks_are_refused_under_a_sampled_law():
    with pytest.raises(SpecError, match="skips rank 0"):
        StaticTree(Topology.from_paths([[1]]), Law.WITHOUT_REPLACEMENT)
    assert StaticConfig(tree=[[1]], sampling="top-k").topology().skipped == (1,)


def test_a_chain_has_one_node_per_level():
    builder = CHAIN.build(ChainConfig(depth=3), BuildContext())
    assert builder.shape == TreeShape(4, 3, 1, 2, 3)
    assert builder.uniforms == 3
    tree, drafter, _ = build(builder, 0.0)
    assert tree.parents[0].tolist() == [-1, 0, 1, 2]
    assert [call[1] for call in drafter.calls[1:]] == [[[-1]], [[0]]]


@pytest.mark.parametrize("depth", [0, -1, 5000, 1.5, True])
def test_an_impossible_chain_is_refused(depth):
    with pytest.raises(ValidationError, match="depth"):
        ChainConfig(depth=depth)


def test_none_drafts_the_root_alone_and_asks_the_head_for_nothing():
    builder = NONE.build(NONE.config(), BuildContext())
    assert builder.shape == TreeShape(nodes=1, depth=0, siblings=0, expansions=0)
    assert (builder.uniforms, builder.laws) == (0, frozenset())
    tree, drafter, draws = build(builder, 1.0, 0.0)
    assert tree.tokens.tolist() == [[3], [3]]
    assert tree.ancestors.tolist() == [[[True]], [[True]]]
    assert (drafter.calls, draws.used, tree.draft_probs) == ([], 0, None)
