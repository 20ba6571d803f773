"""Small worlds to prove an acceptance rule in: a vocabulary, a tree, and all distributions.

It knows integers and fractions; it does not know tensors or rules. Hypothesis, which draws worlds,
is imported only when asked to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, TypeVar

from eagle.plugin import Law, TreeBuilder, TreeShape

if TYPE_CHECKING:
    from hypothesis import strategies as st

__all__ = ["Processors", "World", "difference", "worlds"]

T = TypeVar("T")
Weights = tuple[int, ...]


@dataclass(frozen=True)
class Processors:
    """Sampling parameters; `apply` is the naive twin of `eagle.plugin.probabilities`.

    Attributes:
        temperature: 0, or a power of two, by which floats divide exactly.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        mixed: at temperature 0, whether other slots of the batch may be at another.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    mixed: bool = False

    def apply(self, weights: Weights) -> tuple[Fraction, ...]:
        """Return the distribution that is made of weights (after the temperature, unless 0)."""
        order = sorted(range(len(weights)), key=lambda token: -weights[token])
        kept = {order[0]} if self.temperature == 0 else set(order)
        if self.top_k and self.temperature:
            kept = {token for token in kept if weights[token] >= weights[order[self.top_k - 1]]}
        if self.top_p < 1 and self.temperature:
            before, mass = Fraction(0), sum(weights[token] for token in kept)
            for token in [token for token in order if token in kept]:
                if before >= self.top_p:
                    kept.remove(token)
                before += Fraction(weights[token], mass)
        if self.temperature:
            least = Fraction(self.min_p) * weights[order[0]]
            kept = {token for token in kept if weights[token] >= least}
        mass = sum(weights[token] for token in kept)
        return tuple(
            Fraction(weight if token in kept else 0, mass) for token, weight in enumerate(weights)
        )


@dataclass(frozen=True)
class World:
    """A tree and the distributions at every text that it can draft.

    A text of d tokens behind the root has the code ``sum(token[i] * V ** (d - 1 - i))``; tables
    are indexed by d and code. Which text has which distribution is decided by the seed.

    Attributes:
        vocab: V.
        parents: parent of every node, -1 for the root, parents first.
        ranks: order of every node among its siblings; need not follow the nodes' own.
        targets: the target's distributions, as small integers.
        drafts: draft distributions likewise.
        seed: decides which text has which.
        dynamic: whether a text may have fewer children than its place in the tree has room for.
        processors: sampling parameters.
        subset: the tokens that can be drafted, where drafts have a vocabulary of their own: draft
            weights are over these alone, in this order. None: all of them.
        mixed_laws: whether siblings of every other node are a fixed set, whatever the law is.
    """

    vocab: int
    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    targets: tuple[Weights, ...]
    drafts: tuple[Weights, ...]
    seed: int = 0
    dynamic: bool = False
    processors: Processors = field(default_factory=Processors)
    subset: tuple[int, ...] | None = None
    mixed_laws: bool = False

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of every node."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def shape(self) -> TreeShape:
        """The sizes of the tree."""
        nodes = len(self.parents)
        inner = set(self.parents) - {-1, 0}
        siblings = max(self.ranks[1:], default=-1) + 1
        return TreeShape(nodes, max(self.depths), siblings, len(inner), nodes)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of every node, by rank."""
        nodes = range(len(self.parents))
        return tuple(
            tuple(sorted((n for n in nodes if self.parents[n] == node), key=self.ranks.__getitem__))
            for node in nodes
        )

    def code(self, text: Sequence[int]) -> int:
        """Return the code of a text."""
        code = 0
        for token in text:
            code = code * self.vocab + token
        return code

    def text(self, code: int, length: int) -> list[int]:
        """Return the text of a length that has a code."""
        return [code // self.vocab**place % self.vocab for place in reversed(range(length))]

    def target_weights(self, depth: int) -> list[Weights]:
        """Return the target's weights after every text of *depth* tokens."""
        return self._assign(f"target {depth}", depth, self.targets)

    def target_probs(self, depth: int) -> list[tuple[Fraction, ...]]:
        """Return the target's distributions after every text of *depth* tokens."""
        return [self.processors.apply(weights) for weights in self.target_weights(depth)]

    def draft_weights(self, depth: int) -> list[Weights]:
        """Return draft weights after every text of *depth* tokens; some are just the target's."""
        choice = Random(f"{self.seed} equal {depth}")
        pairs = zip(
            self._assign(f"draft {depth}", depth, self.drafts),
            self.target_weights(depth),
            strict=True,
        )
        chosen = [target if choice.random() < 0.2 else draft for draft, target in pairs]
        return chosen if self.subset is None else [self._within(weights) for weights in chosen]

    def _within(self, weights: Weights) -> Weights:
        """Return the weights of what can be drafted, the rest having none; never all zero."""
        assert self.subset is not None
        kept = [w if token in self.subset else 0 for token, w in enumerate(weights)]
        if not any(kept):
            kept[self.subset[0]] = 1
        return tuple(kept)

    def widths(self, depth: int) -> list[int]:
        """Return how many children the texts of *depth* tokens may have."""
        options = range(self.shape.siblings + 1) if self.dynamic else [self.shape.siblings]
        return self._assign(f"width {depth}", depth, options)

    def candidates(self, depth: int) -> list[Weights]:
        """Return the order of the vocabulary by which fixed sets are taken."""
        choice = Random(f"{self.seed} candidates {depth}")
        tokens = range(self.vocab)
        return [tuple(choice.sample(tokens, self.vocab)) for _ in range(self.vocab**depth)]

    def _assign(self, purpose: str, depth: int, options: Sequence[T]) -> list[T]:
        choice = Random(f"{self.seed} {purpose}")
        return [choice.choice(options) for _ in range(self.vocab**depth)]


def worlds(
    law: Law, builder: TreeBuilder | None = None, *, chain: bool = False
) -> st.SearchStrategy[World]:
    """Return a Hypothesis strategy for worlds that can be enumerated in milliseconds.

    Args:
        law: how siblings are drawn; sampled laws get smaller trees, whose candidates are chance.
        builder: makes the trees; the worlds then only provide distributions.
        chain: trees have one candidate per level.
    """
    from hypothesis import strategies as st

    @st.composite
    def draw_world(draw: st.DrawFn) -> World:
        vocab = draw(st.sampled_from(_vocabularies(builder)))
        if builder is None:
            parents, ranks = draw(_trees(vocab, law, chain=chain))
        else:
            parents, ranks = tuple(range(-1, builder.shape.depth)), (0,) * (builder.shape.depth + 1)
        # Zeros make supports differ and residuals run out; too many leave nothing to enumerate.
        dense, sparse = (
            [st.sampled_from(pool)] * vocab for pool in ((0, 1, 1, 2, 3, 5), (0, 0, 1))
        )
        weights = st.one_of(st.tuples(*dense), st.tuples(*dense), st.tuples(*sparse)).filter(any)
        targets = draw(st.lists(weights, min_size=1, max_size=3))
        drafts = draw(st.lists(weights, min_size=1, max_size=3))
        return World(
            vocab,
            parents,
            ranks,
            tuple(targets),
            tuple(drafts),
            seed=draw(st.integers(0, 2**16)),
            dynamic=draw(st.booleans()),
            processors=draw(st.sampled_from(_PROCESSORS)),
            # Neither matters to candidates that come from nowhere, as a fixed set's do here.
            subset=draw(_subsets(vocab, builder)) if builder or not law.fixed else None,
            mixed_laws=not builder and not law.fixed and draw(st.sampled_from([False, True])),
        )

    return draw_world()


def difference(rule: object, law: Law, text: list[int], got: object, wanted: object) -> str:
    """Return what to say of an output that has another probability than the target gives it."""
    name = getattr(rule, "__name__", type(rule).__name__)
    return (
        f"{name} is not lossless under {law}: it puts out {text} with probability {got}, "
        f"the target with {wanted}"
    )


# Thresholds that no fraction of the small integers above comes near: a tie would be decided by
# rounding, which is not what is being proved.
_PROCESSORS = (
    *[Processors()] * 4,
    *[Processors(temperature=0.5)] * 3,
    Processors(temperature=2.0, top_k=2),
    Processors(top_p=0.5317),
    Processors(temperature=0.5, min_p=0.2817),
    *[Processors(temperature=0.0)] * 3,
    Processors(temperature=0.0, mixed=True),
)


def _vocabularies(builder: TreeBuilder | None) -> list[int]:
    """Return the vocabulary sizes to try, such that a builder's draws can be enumerated."""
    if builder is None:
        return [2, 3, 4, 5]
    least = max(2, builder.shape.siblings)
    free = builder.uniforms
    return [size for size in range(least, 6) if size**free <= 4096] or [least]


def _subsets(vocab: int, builder: TreeBuilder | None) -> st.SearchStrategy[tuple[int, ...] | None]:
    """Return a strategy for vocabularies of drafts: mostly the whole, as it is."""
    from hypothesis import strategies as st

    least = 1 if builder is None else max(2, builder.shape.siblings)
    some = st.permutations(range(vocab)).flatmap(
        lambda order: st.integers(min(least, vocab), vocab).map(lambda n: tuple(order[:n]))
    )
    return st.one_of(st.none(), st.none(), some)


def _trees(
    vocab: int, law: Law, *, chain: bool = False
) -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return a strategy for parents and ranks of trees of depth 3 at most."""
    from hypothesis import strategies as st

    # Sampled candidates alone have up to V ** nodes outcomes.
    most = 7 if law == Law.TOP_K else int(math.log(1030, vocab))
    most = min(most, 3) if chain else most
    # A fixed set and draws without replacement cannot have more members than there are tokens.
    widest = 1 if chain else min(vocab, 4) if law.distinct else 3

    @st.composite
    def draw_tree(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
        parents, depths = [-1], [0]
        for node in range(1, draw(st.sampled_from([*range(most + 1), most, most])) + 1):
            free = [n for n in range(node) if depths[n] < 3 and parents.count(n) < widest]
            parents.append(draw(st.sampled_from(free)))
            depths.append(depths[parents[-1]] + 1)
        ranks = [0] * len(parents)
        for parent in sorted(set(parents[1:])):
            siblings = [node for node, above in enumerate(parents) if above == parent]
            for rank, node in enumerate(draw(st.permutations(siblings))):
                ranks[node] = rank
        return tuple(parents), tuple(ranks)

    return draw_tree()
