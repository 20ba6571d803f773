"""What a component may do beside what its role asks of it: optional, each a protocol of its own.

A component has a capability by having its methods; those of training are in
`eagle.plugin.training_head`. B slots, D drafted levels, V vocabulary of the
target, Vd that of a head, F feature size, S size of a head's states.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from eagle.cache import Step
from eagle.plugin.budget import Budget, Costs, Fit, RankRates
from eagle.plugin.roles import DraftHead, FeatureExtractor, TargetInfo, TreeBuilder

__all__ = [
    "Exportable",
    "FittedTree",
    "FollowsLayers",
    "FollowsSlots",
    "ForeseesChoice",
    "Identified",
    "LearnsCosts",
    "LearnsVerified",
    "LimitedDepth",
    "MeasuredHead",
    "NamesLayers",
    "NeedsTopology",
    "OfferingHead",
    "OfferingPart",
    "OwnVocabulary",
    "ParallelHead",
    "RequestAware",
    "Seen",
    "VaryingTree",
]


@runtime_checkable
class RequestAware(Protocol):
    """A component of any role that is told when a slot's request begins and when it ends.

    On the host, outside of what is captured. With CUDA graphs a cycle may be under way already
    when a request ends: what it still writes into the slot belongs to nobody.
    """

    def begin_request(self, slot: int, prompt: Sequence[int]) -> None:
        """Forget what the slot held: a request begins, and its prompt is read next."""
        ...

    def end_request(self, slot: int, text: Sequence[int]) -> None:
        """Take note of a whole text, prompt and answer: its request is over, or given up."""
        ...


@runtime_checkable
class OfferingHead(RequestAware, Protocol):
    """A draft head that knows on the host, before a cycle, for which slots it has candidates.

    It is told of text as soon as it is read back, and so it may also look candidates up on the
    host: what `offer` copies into tensors at fixed addresses is drafted in the cycle behind it,
    captured or not. What it offers must follow from committed text alone.
    """

    def follow(self, slot: int, tokens: Sequence[int]) -> None:
        """Take note of what a slot's text goes on with, from the first token behind its prompt."""
        ...

    def offer(self, slots: int) -> Sequence[int]:
        """Return for how many levels there are candidates in each of the first slots; 0: none.

        Called once before every cycle. A tree that varies may go by it (`Seen.offered`).
        """
        ...


@runtime_checkable
class OfferingPart(Protocol):
    """An `OfferingHead` of several parts, some of which need not run where all was offered.

    A tree builder that declares ``offered = True`` takes candidates that were offered and no
    others: in its cycles this part drafts, while the whole head absorbs what is committed.
    """

    @property
    def offering(self) -> DraftHead:
        """What drafts then: its `extend` and `logits` take and give the whole head's states."""
        ...


@runtime_checkable
class LearnsVerified(Protocol):
    """A draft head that is told what the verification found, at rejected nodes too.

    `DraftHead.absorb` is given it in every cycle (`eagle.plugin.Committed.verified`), within what
    is captured; it is not of prompts. What is written down then, and is of no row of the text, is
    kept in `verified_memory` and nowhere else. `extend` and `logits` may go by it, from the next
    cycle on; the states that `absorb` returns must follow from the text alone, as ever.

    The loop looks after that memory: a slot's is zeros when its request begins, goes along where
    its text is moved, and is put back where a cycle was only tried. So it is the request's own
    whatever texts shared, and what a head drafts by it follows from what was verified before the
    cycle began, which keeps every law exact.
    """

    @property
    def verified_memory(self) -> Sequence[Tensor]:
        """Tensors ``[slots, ...]`` that `DraftHead.allocate` made, where zeros mean nothing.

        Of a slot that idles nothing may be changed. Empty: the head is told nothing after all.
        """
        ...


@runtime_checkable
class ParallelHead(Protocol):
    """A draft head that drafts all levels in one pass (Medusa, DFlash, P-EAGLE, JetSpec).

    Each level has one distribution, given the text alone: it does not know which tokens the levels
    above it draw. Tree builders need not know: `eagle.plugin.Drafter` gives them each level's when
    they ask for it. `extend` is never called.
    """

    def draft(self, tokens: Tensor, states: Tensor, step: Step) -> Tensor:
        """Return the draft logits of D levels, ``[B, D, V]``.

        Args:
            tokens: int64 ``[B]``, the root: the last committed tokens.
            states: ``[B, S]``, what `absorb` returned for them.
            step: D entries behind the committed rows, each seeing all before it, for a head that
                writes such; a head whose entries see each other both ways replaces its `tail`.
        """
        ...


@runtime_checkable
class LimitedDepth(Protocol):
    """A draft head that drafts so many levels and no more, as parallel ones do.

    Deeper trees are refused when a spec is resolved for a target, and no deeper ones are measured.
    """

    def deepest_level(self) -> int | None:
        """Return the deepest level that it drafts, from 1; None where there is no such limit.

        Raises:
            CheckpointError: its files, which say so, cannot be found or read.
        """
        ...


@runtime_checkable
class OwnVocabulary(Protocol):
    """A draft head whose logits are over a vocabulary of its own, Vd of the target's V tokens.

    Draft logits and distributions stay in it; candidates are put into the target's ids when they
    are taken in again and when the tree is done.
    """

    @property
    def draft_vocab(self) -> Tensor | None:
        """The target's id of every token, int64 ``[Vd]``, each id once; None: all of V.

        On the target's device, and asked for when the head is loaded.
        """
        ...


@runtime_checkable
class NamesLayers(Protocol):
    """A draft head that says which hidden states its features are to be joined of."""

    def feature_layers(self, target: TargetInfo) -> tuple[int, ...] | None:
        """Return indices of transformers' `hidden_states`, in order; None: it does not mind.

        Raises:
            CheckpointError: its checkpoint is made for another target.
        """
        ...


@runtime_checkable
class FollowsLayers(Protocol):
    """A feature extractor that can take its layers from a head that names some."""

    def following(self, layers: tuple[int, ...]) -> FeatureExtractor:
        """Return the extractor of these layers, which takes this one's place."""
        ...


@dataclass(frozen=True)
class Seen:
    """What may decide which tree a cycle drafts: all of it was known before the cycle began.

    Attributes:
        active: how many slots have a request.
        committed: for every slot, how many tokens the last cycle that was read back committed;
            None where the slot is free, or its request has had no cycle yet.
        offered: for every slot, for how many levels the head has candidates
            (`OfferingHead.offer`); None where the slot is free. Empty where it does not say.
        width: over how many slots the cycle runs, free ones among them; 0 where nobody says.
        sampled: whether a request is at temperature > 0.
        slots: how many requests the decoder decodes at once, at most; 0 where nobody says.
        seeded: whether a request at temperature > 0 has a seed that somebody gave: its text is to
            be the same again, whoever shares the batch. That of a request without one cannot be.
    """

    active: int
    committed: tuple[int | None, ...]
    offered: tuple[int | None, ...] = ()
    width: int = 0
    sampled: bool = False
    slots: int = 0
    seeded: bool = False


@runtime_checkable
class VaryingTree(Protocol):
    """A tree builder whose trees are of one of a few shapes, another one in every cycle.

    Which one is chosen on the host, by what was read back before the cycle began. Choosing after
    something was drawn in that cycle would be biased: what was drawn then decides what is held
    against the target. Caches are allocated for the largest, and each is captured once. Either all
    of its trees draw by `Law.SHARED_NOISE`, the root alone included, or none does.

    Beside these it is a `TreeBuilder` itself, whose `shape`, `laws` and `build` are those of its
    usual tree.
    """

    @property
    def alternatives(self) -> Sequence[TreeBuilder]:
        """The builders to choose from, always the same."""
        ...

    def choose(self, seen: Seen) -> int:
        """Return the place of the next cycle's builder among the alternatives."""
        ...


@runtime_checkable
class ForeseesChoice(Protocol):
    """A `VaryingTree` that knows which builders it may choose, so that others are not compiled."""

    def foresee(self, width: int, *, sampled: bool, slots: int) -> Collection[int]:
        """Return the places of the builders that `choose` may return, whatever else is seen.

        Args:
            width: over how many slots a cycle runs.
            sampled: whether a request is at temperature > 0; with a seed that was given or without.
            slots: see `Seen.slots`.
        """
        ...


@runtime_checkable
class FittedTree(Protocol):
    """An optional capability of a tree builder: one whose size follows what the machine can do.

    A builder that has it is asked once, when a decoder is made and what the machine can do has
    been measured; the builder that it returns takes its place. Until then, and where the head's
    acceptance was never measured, the builder itself is used: it has a size too. A builder whose
    size the spec settles must not have this method.
    """

    def fit(self, budget: Budget) -> Fit[TreeBuilder] | None:
        """Return the builder of the best size, or None where none is better than its own.

        Its laws must be among those that this builder declares.

        Args:
            budget: how likely candidates are accepted, and what cycles cost.
        """
        ...


@runtime_checkable
class LearnsCosts(Protocol):
    """A tree builder that is told what cycles cost over so many slots, once that many are decoded.

    It is a `VaryingTree`, else it would be told for nothing. Costs are measured while nobody is
    decoded, before slots are allocated; for one slot only those are told that are known already,
    so that a lone request waits for nothing.
    """

    @property
    def learned(self) -> frozenset[int]:
        """The numbers of slots of which costs are known."""
        ...

    def learn(self, slots: int, costs: Costs) -> None:
        """Take note of what cycles over so many slots cost."""
        ...


@runtime_checkable
class FollowsSlots(Protocol):
    """A tree builder that can become one whose size follows the number of slots.

    It is asked once, when a decoder is made; until then, and where the head's acceptance was never
    measured, the builder itself is used.
    """

    def follow(self, rates: RankRates) -> TreeBuilder:
        """Return the builder that takes its place, a `VaryingTree`.

        Its laws must be among those that this builder declares.
        """
        ...


@runtime_checkable
class MeasuredHead(Protocol):
    """An optional capability of a draft head: one whose files may say how often it is right."""

    @property
    def folder(self) -> Path:
        """Where its files are; `eagle.plugin.RankRates.read` finds what was measured of it.

        Raises:
            CheckpointError: there is no such folder.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A draft head that can say what its files hold, beside what the spec says."""

    @property
    def identity(self) -> str:
        """What they hold, in one sentence; no weight is read.

        Raises:
            CheckpointError: they cannot be found or read, or hold something else.
        """
        ...


@runtime_checkable
class Exportable(Protocol):
    """A draft head whose files can be written as another engine reads them."""

    def export(self, engine: str, out: Path) -> str:
        """Write them, and return the command that serves them; no weight need be loaded.

        Args:
            engine: its name: ``vllm``, ``sglang``, ``speculators``, or ``eagle`` for the layout
                of the authors.
            out: a folder.

        Raises:
            CheckpointError: that engine would not read them, or not as what they are.
        """
        ...


@runtime_checkable
class NeedsTopology(Protocol):
    """An acceptance rule that is not for every tree; without this, it is for all of them."""

    @property
    def topology(self) -> Literal["tree", "chain"]:
        """``chain`` of a rule that takes one candidate per level only."""
        ...
