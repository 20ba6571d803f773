"""The five roles of a decoder: what a component of each must be, do and declare.

It knows no implementation. What a component may do besides is in `eagle.plugin.capabilities`.

B slots, N tree nodes (root included), D drafted levels, V vocabulary, H hidden size of the target,
F feature size, S size of a draft head's states. Nothing called inside a cycle may read a device
value on the host or let a shape depend on one; a component that cannot keep to that declares
``capturable = False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from eagle.cache import Pages, Step
from eagle.plugin.draws import Draws
from eagle.plugin.entries import Committed, Drafted
from eagle.plugin.laws import EVERY_LAW, Law
from eagle.plugin.models import TargetModel
from eagle.plugin.sampling import Sampling, TargetProbs
from eagle.plugin.strategy import (
    BuildContext,
    ComponentSpec,
    Role,
    Strategy,
    StrategyConfig,
    TargetInfo,
)
from eagle.plugin.tree import Acceptance, TokenTree, TreeShape

__all__ = [
    "EVERY_LAW",
    "AcceptanceRule",
    "AttentionBackend",
    "BuildContext",
    "Committed",
    "Component",
    "ComponentSpec",
    "DraftHead",
    "Drafted",
    "Drafter",
    "FeatureExtractor",
    "Law",
    "Role",
    "Scores",
    "Strategy",
    "StrategyConfig",
    "TargetInfo",
    "TargetModel",
    "TreeBuilder",
]


class Component(Protocol):
    """What all roles declare."""

    @property
    def capturable(self) -> bool:
        """Whether its work in a cycle is free of host reads and of varying shapes."""
        ...


class FeatureExtractor(Component, Protocol):
    """Which hidden states does the head see, and how are they joined?"""

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden states needed beside the last, as indices of transformers' `hidden_states`."""
        ...

    def feature_size(self, target: TargetInfo) -> int:
        """Return F for a target."""
        ...

    def extract(self, last: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
        """Join hidden states into features.

        Args:
            last: ``[B, N, H]``, the LM head's input.
            hidden_states: one ``[B, N, H]`` for each of `layers`.

        Returns:
            Features ``[B, N, F]``.
        """
        ...


@dataclass(frozen=True)
class Scores:
    """What a layer makes of its attention scores, beside scaling them.

    Attributes:
        softcap: c, where a scaled score s becomes ``c * tanh(s / c)`` before any mask.
        sinks: ``[query_heads]``, a score for each head that takes part in the softmax and has no
            row: what it weighs is lost. It is neither scaled nor capped.
    """

    softcap: float | None = None
    sinks: Tensor | None = None


class AttentionBackend(Component, Protocol):
    """How is a token tree attended over the cache?

    Some targets ask for more than scaled scores under a mask: a ``window``, a ``softcap``,
    ``sinks``. A backend that serves them names them in an attribute ``modifiers``, a frozenset of
    these words, and is given them as keyword arguments: ``plan(..., window=W)``, once for each
    window that layers have, and ``attend(..., scores=Scores(...))``. One without the attribute is
    called without them, and refused for targets that need them when they are probed.

    A window counts positions: an entry at position p sees, of what its mask shows it, what is at
    positions above p - W. Committed rows are at their own positions. Passes with a window have one
    row of the tail for each entry, in order, so `Step.positions` has those of all others.
    """

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return why this backend cannot serve such tensors, or None if it can."""
        ...

    def plan(self, step: Step, query_heads: int, kv_heads: int, dtype: torch.dtype) -> Any:
        """Prepare, once per pass, what every layer's `attend` needs (a mask, say)."""
        ...

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, plan: Any, scaling: float
    ) -> Tensor:
        """Attend from N new entries over the cache.

        A backend may declare more than this. One with ``paged = True`` is given a step with a
        `table`, and whole stores ``[1, kv_heads, all rows, head_dim]`` as keys and values, in which
        the table says where a slot's rows are (`eagle.plugin.gathered` copies them out). One with
        ``packs = True`` is also given packed steps (`eagle.plugin.Step.packed`), by which several
        prompts are read in one pass. If ``packs_unseen(dtype, head_dim)`` of such a backend says
        so, they may be without what the host knows of their pieces, so that they can be captured.

        Args:
            query: ``[B, query_heads, N, head_dim]``.
            keys: ``[B, kv_heads, span, head_dim]``, the new entries' own rows already written.
            values: the same shape as `keys`.
            plan: what `plan` returned for this pass.
            scaling: factor on the scores before the softmax.

        Returns:
            ``[B, N, query_heads, head_dim]``.
        """
        ...


class DraftHead(Component, Protocol):
    """Given features and the shifted tokens, what comes next?

    A head keeps one cache entry for each pair (feature of position t, token at t + 1). It is
    told where to write and what to see by a `Step`; it never decides that itself.

    Its states are its own business: what it predicts from, and what it is given back in `extend`.
    They need only be of one size, and finite, since what is not is taken for damage. They have the
    target's dtype, in which whole numbers above 256 may be rounded (`eagle.plugin.pack_integers`).
    Draft logits may be -inf, for what a head does not propose, but not all of a row: what has
    nothing to propose proposes anything.

    In `extend` and `logits` the B slots are the first ones of those that were allocated; in
    `absorb` they are what ``step.slots`` says.

    A head may declare more than this. One with ``paged = True`` remembers nothing of a text but by
    rows of an `eagle.plugin.TreeCache`, so that rows may lie in blocks and texts share them: what
    one has absorbed, another that begins alike is not told again. Rows that are no text's of a slot
    hold anything. It is also given packed entries
    (`eagle.plugin.Committed`), as is one with ``packs = True``, which keeps more than that and
    finds by ``step.slots`` whose entries are whose. All others are told of one prompt at a time.
    """

    def feature_size(self, target: TargetInfo) -> int:
        """Return the F that this head consumes for a target.

        Raises:
            CheckpointError: its checkpoint is made for another target.
        """
        ...

    def state_size(self, target: TargetInfo) -> int:
        """Return S for a target."""
        ...

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load weights, and keep what it uses of the target (`eagle.plugin.TargetModel`)."""
        ...

    def allocate(self, slots: int, rows: int, pages: Pages | None = ..., /) -> None:
        """Allocate (again) the head's own cache.

        Args:
            slots: how many.
            rows: of each, at most.
            pages: where slots' rows lie, for the head's `eagle.plugin.TreeCache`. Given to a head
                that declares ``paged = True``; others need not take it.
        """
        ...

    def absorb(self, committed: Committed) -> Tensor:
        """Take in committed text.

        Entries may come more than once, as rows are written again behind what counts and as work
        is tried before it is captured: what is remembered of them belongs to their rows.

        Returns:
            States ``[B, T, S]``; entry t predicts what follows ``committed.tokens[:, t]``.
        """
        ...

    def extend(self, drafted: Drafted) -> Tensor:
        """Take in drafted tokens, with the states that predicted them in the features' place.

        Returns:
            States ``[B, W, S]``.
        """
        ...

    def logits(self, states: Tensor) -> Tensor:
        """Return the draft logits ``[B, W, V]`` of states ``[B, W, S]``, in the target's dtype.

        With a vocabulary of its own (`eagle.plugin.OwnVocabulary`), ``[B, W, Vd]``.
        """
        ...


class Drafter(Protocol):
    """What a tree builder asks for candidates: the draft head with its bookkeeping done.

    Expanded nodes are numbered from 0 in the order in which they were expanded; -1 is the root.
    Candidates are places in the draft logits. Where the head drafts from a vocabulary of its own,
    they are put into the target's ids behind the builder's back, so it need not know.
    """

    @property
    def sampling(self) -> Sampling:
        """The slots' sampling parameters."""
        ...

    @property
    def root(self) -> Tensor:
        """The last committed tokens, int64 ``[B]``."""
        ...

    @property
    def draft_vocab(self) -> Tensor | None:
        """The target's ids of the places in draft logits, int64 ``[V]``; None: they are the same.

        Needed for what is drawn by noise that is the target's too (`Draws.race`).
        """
        ...

    def begin(self) -> Tensor:
        """Return the draft logits ``[B, 1, V]`` of what follows the root."""
        ...

    def levels(self) -> Tensor | None:
        """Return the draft logits of all levels, ``[B, D, V]``, or None.

        Only of a head that drafts them in one pass (`eagle.plugin.ParallelHead`): level d
        has one distribution for all its nodes, whatever is above them. `begin` and `expand` give
        the same, so only a builder that wants to see all levels at once need ask.
        """
        ...

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        """Run the head on W more nodes and return the draft logits of what follows each.

        Args:
            tokens: int64 ``[B, W]``.
            parents: int64 ``[B, W]``, numbers of the expanded nodes above them, -1 for the root.
            level: the nodes' depth, the same for all of them; by default one more than in the
                call before, from 1.

        Returns:
            Draft logits ``[B, W, V]``.
        """
        ...


class TreeBuilder(Component, Protocol):
    """Which candidates are drafted, in what shape?"""

    @property
    def shape(self) -> TreeShape:
        """The sizes of every tree that this builder makes; of one that varies, the largest."""
        ...

    @property
    def laws(self) -> frozenset[Law]:
        """Every law by which, as configured, siblings may be drawn."""
        ...

    @property
    def uniforms(self) -> int:
        """How many uniforms per slot `build` reads in one cycle, at most."""
        ...

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one tree per slot."""
        ...


class AcceptanceRule(Component, Protocol):
    """Which path is kept, and which token follows?"""

    @property
    def lossless(self) -> bool:
        """Whether the output keeps the target's distribution, given a law in `laws`."""
        ...

    @property
    def laws(self) -> frozenset[Law]:
        """The laws under which the rule keeps what it declares.

        `eagle.plugin.EVERY_LAW` of one that goes by what a law says of itself, or by none at all.
        """
        ...

    def uniforms(self, shape: TreeShape) -> int:
        """Return how many uniforms per slot `accept` reads in one cycle, at most."""
        ...

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        """Choose an accepted path and the bonus token for every slot."""
        ...
