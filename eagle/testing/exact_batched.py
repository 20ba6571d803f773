"""Enumerates a batched acceptance rule in a small world, in float64; one lane per outcome.

It knows rules and tree builders by their roles, and worlds; not where worlds come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eagle.plugin import (
    Acceptance,
    AcceptanceRule,
    Law,
    Sampling,
    TargetProbs,
    TokenTree,
    TreeBuilder,
    TreeShape,
    ancestor_mask,
)
from eagle.testing.oracle import EnumeratingDraws, TableDrafter, enumerate_draws
from eagle.testing.worlds import World, difference

__all__ = ["check_world"]

_TOLERANCE = 1e-12
_ROOT = 0


def check_world(
    rule: AcceptanceRule, world: World, law: Law, builder: TreeBuilder | None = None
) -> None:
    """Enumerate a batched rule's outputs in one world and compare within 1e-12.

    Args:
        rule: the rule.
        world: the world.
        law: how its siblings are drawn.
        builder: drafts the trees instead.

    Raises:
        AssertionError: see `assert_lossless`.
    """
    tables = _Tables(world)
    shape = world.shape if builder is None else builder.shape

    def run(draws: EnumeratingDraws) -> tuple[Tensor, Acceptance]:
        sampling = tables.sampling(draws.lanes)
        if builder is None:
            tree = _draft(tables, _mixed(rule, law, world), draws)
        else:
            drafter = TableDrafter(tables.draft_logits, sampling, _ROOT, tables.draft_vocab)
            tree = drafter.finish(builder.build(drafter, draws))
            _within(draws.used, builder.uniforms, builder, "build")
        codes, logits = tables.score(tree)
        before = draws.used
        outcome = rule.accept(tree, TargetProbs(logits, sampling), shape, draws)
        _within(draws.used - before, rule.uniforms(shape), rule, "accept")
        _check_outcome(outcome, tree, shape)
        return codes, outcome

    # By length of the output: the probability of every text of that length.
    outputs = [torch.zeros(world.vocab**length).double() for length in range(shape.depth + 2)]
    for (codes, outcome), draws in enumerate_draws(run):
        last = outcome.path.gather(1, outcome.count[:, None])
        text = codes.gather(1, last)[:, 0] * world.vocab + outcome.bonus
        for length, output in enumerate(outputs):
            here = outcome.count + 1 == length
            output.index_add_(0, text[here], draws.probability[here])

    actual, expected = torch.zeros(1).double(), torch.ones(1).double()
    for table, output in zip(tables.target_probs, outputs[1:], strict=True):
        actual = (actual[:, None] * table).flatten() + output
        expected = (expected[:, None] * table).flatten()
    wrong = int((actual - expected).abs().argmax())
    # Written so that NaN fails.
    if not abs(float(actual[wrong] - expected[wrong])) <= _TOLERANCE:
        got, wanted = float(actual[wrong]), float(expected[wrong])
        raise AssertionError(difference(rule, law, world.text(wrong, shape.depth + 1), got, wanted))


@dataclass(frozen=True)
class _Tables:
    """A world's distributions as float64 tensors ``[V ** d, V]``, one for each depth d."""

    world: World

    @cached_property
    def depth(self) -> int:
        return self.world.shape.depth

    @cached_property
    def target_probs(self) -> list[Tensor]:
        return [
            _table([[float(p) for p in row] for row in self.world.target_probs(depth)])
            for depth in range(self.depth + 1)
        ]

    @cached_property
    def target_logits(self) -> list[Tensor]:
        return [self._logits(self.world.target_weights(depth)) for depth in range(self.depth + 1)]

    @cached_property
    def draft_vocab(self) -> Tensor | None:
        return None if self.world.subset is None else torch.tensor(self.world.subset)

    @cached_property
    def draft_logits(self) -> list[Tensor]:
        whole = [self._logits(self.world.draft_weights(depth)) for depth in range(self.depth + 1)]
        return whole if self.draft_vocab is None else [t[:, self.draft_vocab] for t in whole]

    @cached_property
    def draft_weights(self) -> list[Tensor]:
        return [_table(self.world.draft_weights(depth)) for depth in range(self.depth + 1)]

    @cached_property
    def candidates(self) -> list[Tensor]:
        return [torch.tensor(self.world.candidates(depth)) for depth in range(self.depth + 1)]

    @cached_property
    def widths(self) -> list[Tensor]:
        return [torch.tensor(self.world.widths(depth)) for depth in range(self.depth + 1)]

    def _logits(self, weights: list[tuple[int, ...]]) -> Tensor:
        # Logits that the temperature turns into the weights: a rule that forgets it is caught.
        return _table(weights).log() * (self.world.processors.temperature or 1.0)

    def sampling(self, slots: int) -> Sampling:
        """Return the world's sampling parameters for every slot."""
        own = self.world.processors
        return Sampling(
            temperature=torch.full((slots,), own.temperature),
            top_k=torch.full((slots,), own.top_k),
            top_p=torch.full((slots,), own.top_p),
            min_p=torch.full((slots,), own.min_p),
            greedy=own.temperature == 0 and not own.mixed,
            filtered=own.temperature > 0 and (own.top_k > 0 or own.top_p < 1),
        )

    def score(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        """Return the code of every node's text ``[B, N]`` and the target's logits ``[B, N, V]``."""
        codes = torch.zeros_like(tree.tokens)
        depths = torch.zeros_like(tree.tokens)
        for node in range(1, tree.tokens.shape[1]):
            parent = tree.parents[:, node : node + 1]
            if not bool((parent < node).all()):
                raise AssertionError(
                    f"node {node} comes before its parent: {parent[:, 0].tolist()}"
                )
            above = parent.clamp(min=0)
            code = codes.gather(1, above) * self.world.vocab + tree.tokens[:, node : node + 1]
            depth = depths.gather(1, above) + 1
            codes[:, node : node + 1] = code.where(parent >= 0, 0)
            depths[:, node : node + 1] = depth.where(parent >= 0, 0)
        offsets = torch.tensor([0, *[len(table) for table in self.target_logits]]).cumsum(0)
        return codes, torch.cat(self.target_logits)[offsets[depths] + codes]


def _table(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _mixed(rule: AcceptanceRule, law: Law, world: World) -> tuple[Law, ...]:
    """Return the laws of a world's siblings: one, or others that the rule declares besides."""
    if law.fixed or not world.mixed_laws:
        return (law,)
    others = (Law.TOP_K, Law.WITHOUT_REPLACEMENT)
    return (law, *[other for other in others if other != law and other in rule.laws])


def _draft(tables: _Tables, laws: tuple[Law, ...], draws: EnumeratingDraws) -> TokenTree:
    """Draft the world's tree in every lane, the candidates of nodes by the laws in turn."""
    world = tables.world
    lanes = draws.lanes
    vocab, nodes = world.vocab, len(world.parents)
    sampled = not laws[0].fixed and world.processors.temperature > 0
    raced = laws[0] == Law.SHARED_NOISE and world.processors.temperature > 0
    tokens = torch.full((lanes, nodes), _ROOT)
    codes = torch.zeros(lanes, nodes, dtype=torch.int64)
    parents = torch.tensor(world.parents).repeat(lanes, 1)
    rows = torch.zeros(lanes, nodes, vocab, dtype=torch.float64)
    for node, children in enumerate(world.children):
        depth, code, law = world.depths[node], codes[:, node], laws[node % len(laws)]
        real = (parents[:, node] >= 0) | (node == 0)
        left = tables.draft_weights[depth][code]
        left = left / left.sum(1, keepdim=True)
        # Rows in another order than nodes: a rule must go by `draft_rows`.
        rows[:, nodes - 1 - node] = left
        first = None
        if raced and children:
            asked = left * real[:, None]
            first = draws.race(asked, depth, min(len(children), vocab))[0]
        for rank, child in enumerate(children):
            exists = real & (rank < tables.widths[depth][code])
            if sampled and not law.fixed:
                asked = law.proposal(left, rank) * exists[:, None]
                token = draws.categorical(asked)
                exists = asked.gather(1, token[:, None])[:, 0] > 0
                left = law.rest(left, token[:, None])
            else:
                # Draws with replacement have room for more siblings than there are tokens.
                exists = exists & (rank < vocab)
                token = tables.candidates[depth][code, min(rank, vocab - 1)]
                token = token if first is None else first[:, min(rank, vocab - 1)]
            tokens[:, child] = token
            codes[:, child] = (code * vocab + token).where(exists, 0)
            parents[:, child] = parents[:, child].where(exists, -1)
    carries = not laws[0].fixed and (sampled or world.processors.mixed)
    own = tables.draft_vocab
    several = carries and len(laws) > 1
    return TokenTree(
        tokens=tokens,
        parents=parents,
        depths=torch.tensor(world.depths).repeat(lanes, 1),
        ranks=torch.tensor(world.ranks).repeat(lanes, 1),
        ancestors=ancestor_mask(parents, max(world.depths)),
        draft_probs=(rows if own is None else rows[..., own]) if carries else None,
        draft_rows=torch.arange(nodes - 1, -1, -1).repeat(lanes, 1) if carries else None,
        sampled=torch.full((lanes,), sampled) if carries else None,
        law=laws[0] if carries or laws[0].fixed else Law.TOP_K,
        laws=laws if several else (),
        node_laws=(torch.arange(nodes) % len(laws)).repeat(lanes, 1) if several else None,
        draft_vocab=own,
    )


def _within(used: int, declared: int, component: object, method: str) -> None:
    if used > declared:
        raise AssertionError(
            f"{type(component).__name__}.{method}() read {used} uniforms per slot, "
            f"but `uniforms` declares {declared}"
        )


def _check_outcome(outcome: Acceptance, tree: TokenTree, shape: TreeShape) -> None:
    """Raise AssertionError unless paths lead from the root downwards, followed by zeros."""
    slots = tree.tokens.shape[0]
    path, count, bonus = outcome.path, outcome.count, outcome.bonus
    if path.shape != (slots, shape.depth + 1) or count.shape != (slots,) or bonus.shape != (slots,):
        raise AssertionError(
            f"path, count and bonus must be [{slots}, {shape.depth + 1}], [{slots}] and [{slots}], "
            f"not {list(path.shape)}, {list(count.shape)} and {list(bonus.shape)}"
        )
    inside = torch.arange(1, shape.depth + 1) <= count[:, None]
    below = (tree.parents.gather(1, path[:, 1:]) == path[:, :-1]) & (path[:, 1:] > 0)
    right = (below & inside) | ((path[:, 1:] == 0) & ~inside)
    good = right.all(1) & (path[:, 0] == 0) & (count >= 0) & (count <= shape.depth)
    if not bool(good.all()):
        slot = int(good.to(torch.uint8).argmin())
        raise AssertionError(
            f"path {path[slot].tolist()} with count {int(count[slot])} is no path from the root "
            f"followed by zeros; parents are {tree.parents[slot].tolist()}"
        )
