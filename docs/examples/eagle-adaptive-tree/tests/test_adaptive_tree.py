"""Tests of the example: the contract of its role, what it promises, and that it changes no text."""

from __future__ import annotations

import eagle_adaptive_tree as example
import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.plugin import (
    BuildContext,
    IncompatibleError,
    Registry,
    Role,
    Sampling,
    SamplingParams,
    SpecError,
    TargetInfo,
    UniformDraws,
)
from eagle.testing import check_tree_builder, tiny_target

NO_DRAWS = UniformDraws(torch.empty(2, 0))


@pytest.fixture
def registry():
    registry = Registry.discover()
    if "adaptive" not in [entry.name for entry in registry.strategies(Role.TREE)]:
        registry.register(example, "adaptive-tree", "eagle-adaptive-tree")
    return registry


def builder(**settings):
    return example.AdaptiveTree(example.AdaptiveConfig(**settings), BuildContext())


class TextDrafter:
    """Draft logits that depend on the path's tokens, so that a path has one probability."""

    def __init__(self, slots: int, vocab: int) -> None:
        self.sampling = Sampling.of([SamplingParams()] * slots, "cpu")
        self.root = torch.arange(slots)
        self.vocab, self.paths = vocab, [[] for _ in range(slots)]

    def logits(self, slot: int, path: tuple[int, ...]) -> torch.Tensor:
        seed = torch.Generator().manual_seed(hash((slot, *path)) % 2**31)
        return torch.randn(self.vocab, generator=seed) * 3

    def begin(self) -> torch.Tensor:
        return torch.stack([self.logits(slot, ()) for slot in self.root.tolist()])[:, None]

    def expand(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        rows = []
        for slot, paths in enumerate(self.paths):
            new = [
                ((*paths[parent], token) if parent >= 0 else (token,))
                for token, parent in zip(tokens[slot].tolist(), parents[slot].tolist(), strict=True)
            ]
            paths += new
            rows.append(torch.stack([self.logits(slot, path) for path in new]))
        return torch.stack(rows)


@pytest.mark.parametrize(
    "settings",
    [{}, {"depth": 1, "nodes": 3}, {"width": 1, "nodes": 5}, {"depth": 3, "width": 3, "nodes": 21}],
)
def test_keeps_the_contract_of_tree_builders(settings):
    check_tree_builder(builder(**settings))


def best_first(drafter: TextDrafter, slot: int, depth: int, width: int, nodes: int):
    """Return the same tree by hand: a beam of paths, then the likeliest of all candidates."""
    beam, candidates = [(0.0, ())], []
    for _ in range(depth):
        level = []
        for score, path in beam:
            logprobs = drafter.logits(slot, path).log_softmax(-1)
            best = logprobs.topk(width)
            level += [
                (score + value, (*path, token))
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        beam = sorted(level, reverse=True)[:width]
        candidates += level
    return {path for _, path in sorted(candidates, reverse=True)[:nodes]}


@pytest.mark.parametrize(("depth", "width", "nodes"), [(4, 3, 12), (5, 4, 24), (2, 2, 5)])
def test_keeps_the_paths_that_the_head_finds_likeliest(depth, width, nodes):
    drafter = TextDrafter(slots=2, vocab=11)
    tree = builder(depth=depth, width=width, nodes=nodes).build(drafter, NO_DRAWS)
    for slot in range(2):
        paths = {0: ()}
        for node in range(1, nodes + 1):
            above = paths[int(tree.parents[slot, node])]
            paths[node] = (*above, int(tree.tokens[slot, node]))
        assert set(paths.values()) - {()} == best_first(drafter, slot, depth, width, nodes)


def test_grows_deep_where_the_head_is_sure_and_wide_where_it_is_not():
    class Fixed(TextDrafter):
        def logits(self, slot, path):
            sharpness = 50.0 if slot == 0 else 0.1
            return torch.linspace(0, sharpness, self.vocab)

    tree = builder(depth=6, width=4, nodes=6).build(Fixed(slots=2, vocab=9), NO_DRAWS)
    assert tree.depths.amax(1).tolist() == [6, 2]
    assert (tree.depths == 1).sum(1).tolist()[1] == 4


def test_is_selected_from_yaml_and_refuses_impossible_settings(registry):
    def made(**settings):
        spec = DecoderSpec(head="prompt-lookup", tree={"name": "adaptive", **settings})
        return Decoder.from_spec(spec, registry=registry, target=tiny_target()).resolved

    assert made().lossless
    assert made(nodes=60).tree.shape.nodes == 61
    with pytest.raises(SpecError, match="nodes is 80, but depth and width make only 68"):
        made(nodes=80)
    target = TargetInfo(name="t", hidden_size=8, vocab_size=3, layers=1, max_positions=8)
    with pytest.raises(IncompatibleError, match=r"tree\.width is 4, more than the vocabulary"):
        example.AdaptiveTree(example.AdaptiveConfig(), BuildContext(target))


def test_changes_how_fast_a_text_comes_but_not_the_text(registry):
    from eagle.testing import tiny_pair

    target, head = tiny_pair()

    def answer(**parts):
        decoder = Decoder.from_spec(DecoderSpec(**parts), registry=registry, target=target)
        return decoder.generate([[1, 2, 3], [4, 5]], max_new_tokens=20, ignore_eos=True)

    plain = answer(head="none", tree="none")
    drafted = answer(
        head={"name": "eagle", "weights": str(head)}, tree={"name": "adaptive", "nodes": 12}
    )
    assert [result.tokens for result in drafted] == [result.tokens for result in plain]
    assert max(result.stats.tau for result in drafted) > 1
