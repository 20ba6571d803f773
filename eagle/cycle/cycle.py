"""One cycle: draft, verify, accept, commit. Knows the five roles and none of their strategies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eagle.cache import Step
from eagle.cycle.drafter import HeadDrafter
from eagle.cycle.models import pick, stuck
from eagle.cycle.processing import Processing
from eagle.cycle.prompts import PromptReader
from eagle.cycle.reports import report_of
from eagle.cycle.slots import Slots
from eagle.plugin import (
    Acceptance,
    AcceptanceRule,
    AttentionBackend,
    Committed,
    DraftHead,
    Draws,
    FeatureExtractor,
    ForeseesChoice,
    LearnsVerified,
    OfferingPart,
    OwnVocabulary,
    ParallelHead,
    Role,
    Sampling,
    TargetProbs,
    TokenTree,
    TreeBuilder,
    UniformDraws,
    VaryingTree,
    Verified,
    check_draft_memory,
    check_draft_vocab,
    check_draws,
    check_tree,
)
from eagle.target import Target

__all__ = ["PHASES", "Cycle"]

PHASES = ("draft", "verify", "accept", "commit")
"""The parts of a cycle, in order: methods of `Cycle`."""


class Cycle(PromptReader):
    """The components of a decoder and the cycle they run, free of host reads.

    Beside these methods it has those of what it stands on, of `PromptReader` and of `Models`.
    Only a cycle with `Processing` reads device values: it runs processors on the host.

    Attributes:
        timer: called with the name of each phase as it begins, and with ``end``.
        trees: the tree builders to choose from; one, except with a `VaryingTree`.
        tree: the one that the next cycle drafts with; see `use`.
        drafting: the head, or the part of it that drafts for this tree.
        shape: of its trees.
        depth: D of the deepest trees.
        nodes: N of the trees that `run` verified last; what replays a captured run leaves it.
        draft_vocab: int64 ``[Vd]``, the target's ids of what the head drafts from, None for all; of
            a head that is loaded.
    """

    def __init__(
        self,
        target: Target,
        features: FeatureExtractor,
        head: DraftHead,
        tree: TreeBuilder,
        attention: AttentionBackend,
        acceptance: AcceptanceRule,
    ) -> None:
        self.trees = tuple(tree.alternatives) if isinstance(tree, VaryingTree) else (tree,)
        self._foresees = tree if isinstance(tree, ForeseesChoice) else None
        shapes = [one.shape for one in self.trees]
        self.depth = max(shape.depth for shape in shapes)
        # Rows behind the committed ones that a cycle writes, in a slot that is at its end too:
        # a cycle that was started ahead may go on from there.
        written = max(max(s.nodes, s.expansions, s.depth + 1) for s in shapes)
        super().__init__(target, features, head, attention, headroom=self.depth + 1 + written)
        self.acceptance = acceptance
        self.draws_per_cycle = max(
            one.uniforms + acceptance.uniforms(shape)
            for one, shape in zip(self.trees, shapes, strict=True)
        )
        self.use(0)
        self.nodes = self.shape.nodes
        self.draft_vocab: Tensor | None = None
        self._checked: list[TreeBuilder] = []
        self.timer: Callable[[str], None] | None = None

    def use(self, number: int) -> None:
        """Draft with the tree builder of that number from now on."""
        self.tree = self.trees[number]
        self.shape = self.tree.shape
        self.drafting = self.head
        if getattr(self.tree, "offered", False) and isinstance(self.head, OfferingPart):
            self.drafting = self.head.offering

    def foreseen(self, width: int, *, sampled: bool, slots: int) -> Collection[int]:
        """Return the numbers of the trees that may be used; see `eagle.plugin.ForeseesChoice`."""
        if self._foresees is None:
            return range(len(self.trees))
        return sorted(self._foresees.foresee(width, sampled=sampled, slots=slots))

    def allocate(self, slots: int, rows: int, blocks: int | None = None) -> Slots:
        """Allocate caches of *rows* committed rows per slot, and the slots.

        Args:
            slots: how many.
            rows: of each, at most.
            blocks: where rows lie in blocks, how many there are for all slots together, which then
                have none until `assign` gives them some; None for as many as slots can fill, and
                each slot has its own.
        """
        # Asked here, since compilers do not follow what a protocol asks of an object.
        self._parallel = self.head if isinstance(self.head, ParallelHead) else None
        self.draft_vocab = self.head.draft_vocab if isinstance(self.head, OwnVocabulary) else None
        if self.draft_vocab is not None:
            check_draft_vocab(self.draft_vocab, self.target.info.vocab_size)
        self.make_caches(slots, rows, blocks)
        memory: tuple[Tensor, ...] = ()
        if isinstance(self.head, LearnsVerified):
            memory = tuple(self.head.verified_memory)
            check_draft_memory(memory, slots)
        self._learns = bool(memory)
        return Slots.empty(
            slots,
            depth=self.depth,
            uniforms=self.draws_per_cycle,
            state_size=self.state_size,
            vocab=self.target.info.vocab_size,
            dtype=self.target.dtype,
            device=self.target.device,
            memory=memory,
        )

    def run(
        self,
        slots: Slots,
        sampling: Sampling,
        span: int,
        processing: Processing | None = None,
        *,
        reports: bool = False,
    ) -> None:
        """Draft, verify, accept and commit once, for all slots; `slots.outcome` says what came.

        With *reports*, `slots.report` says what the target gave the tokens.
        """
        draws = self.draws(slots.uniforms)
        if isinstance(draws, UniformDraws):
            draws.at(slots.keys, slots.lengths)
        tree: TokenTree = self._phase("draft", slots, sampling, span, draws)
        self._check_draft(tree, slots, draws)
        self.nodes = tree.tokens.shape[1]
        if (agree := self._agree) is not None:
            agree("nodes to verify", self.nodes)
        # Of its nodes alone: where the pass is compiled, once, however their siblings were drawn.
        nodes = TokenTree(tree.tokens, tree.parents, tree.depths, tree.ranks, tree.ancestors)
        logits, features = self._phase("verify", slots, nodes, span)
        scores = processing.at_nodes(logits, tree) if processing else logits
        before = _used(draws)
        choice: Acceptance = self._phase("accept", tree, scores, sampling, draws)
        declared = self.acceptance.uniforms(self.shape)
        check_draws(Role.ACCEPTANCE, "accept", _used(draws) - before, declared)
        self._mark("commit")
        self.cache.store.compact(slots.lengths, choice.path)
        self.phase("commit", slots, tree, choice, logits, scores, features, span)
        if reports:
            follow = self._follow(tree, choice)
            slots.report.write(report_of(pick(logits, choice.path), follow))
        self._mark("end")

    def _check_draft(self, tree: TokenTree, slots: Slots, draws: Draws) -> None:
        check_draws(Role.TREE, "build", _used(draws), self.tree.uniforms)
        if not any(self.tree is one for one in self._checked):
            # Once: it reads the device. With graphs, before anything is captured.
            self._checked.append(self.tree)
            vocab = self.target.info.vocab_size
            exact = self.tree.capturable
            check_tree(tree, self.shape, slots.root, vocab, self.tree.laws, exact=exact)

    @property
    def _agree(self) -> Callable[[str, int], None] | None:
        """What holds sizes that are read on the host against those of other processes, if any.

        Arithmetic that differs in the last bits may lead to another size, and passes over a target
        that processes hold together are of one.
        """
        together = self.target.together
        return None if together is None or self.tree.capturable else together.alike

    def _phase(self, name: str, *args: object) -> Any:
        self._mark(name)
        return self.phase(name, *args)

    def _mark(self, phase: str) -> None:
        if self.timer is not None:
            self.timer(phase)

    def draft(self, slots: Slots, sampling: Sampling, span: int, draws: Draws) -> TokenTree:
        """Return a token tree for every slot."""
        drafter = HeadDrafter(
            self.drafting,
            slots.root,
            slots.state,
            slots.lengths,
            span,
            sampling,
            self.shape.depth,
            self._parallel,
            self.draft_vocab,
            self.target.info.vocab_size,
            self._agree,
        )
        return drafter.finish(self.tree.build(drafter, draws))

    def verify(self, slots: Slots, tree: TokenTree, span: int) -> tuple[Tensor, Tensor]:
        """Return the target's logits ``[B, N, V]`` and features ``[B, N, F]`` at every node."""
        step = Step.tree(slots.lengths, tree.depths, tree.ancestors, span)
        last, hidden = self.forward(tree.tokens, step)
        return self.target.logits(last), self.features.extract(last, hidden)

    def accept(
        self, tree: TokenTree, scores: Tensor, sampling: Sampling, draws: Draws
    ) -> Acceptance:
        """Return the accepted paths and the bonus tokens."""
        shape, nodes = self.shape, tree.tokens.shape[1]
        if nodes < shape.nodes:
            shape = replace(shape, nodes=nodes, siblings=min(shape.siblings, nodes - 1))
        return self.acceptance.accept(tree, TargetProbs(scores, sampling), shape, draws)

    def commit(
        self,
        slots: Slots,
        tree: TokenTree,
        choice: Acceptance,
        logits: Tensor,
        scores: Tensor,
        features: Tensor,
        span: int,
    ) -> None:
        """Let the head absorb what was accepted, and write the slots' next state."""
        follow = self._follow(tree, choice)
        gain = torch.where(slots.active, choice.count + 1, 0)
        committed = Committed(
            tokens=follow,
            own=tree.tokens.gather(1, choice.path),
            features=pick(features, choice.path),
            count=gain,
            step=Step.chain(slots.lengths, self.shape.depth + 1, span),
            verified=self._found(slots, tree, choice, logits) if self._learns else None,
        )
        states = self.absorb(committed)
        bad = stuck(pick(logits, choice.path)) + 2 * ~states.isfinite().flatten(1).all(1)
        if scores is not logits:
            bad = bad + 4 * stuck(pick(scores, choice.path))
        slots.state.copy_(pick(states, choice.count[:, None])[:, 0])
        slots.root.copy_(torch.where(slots.active, choice.bonus, slots.root))
        slots.lengths.add_(gain)
        outcome = torch.cat((torch.stack((gain, bad), 1), follow), 1)
        slots.outcome[:, : outcome.shape[1]].copy_(outcome)

    @staticmethod
    def _found(slots: Slots, tree: TokenTree, choice: Acceptance, logits: Tensor) -> Verified:
        """Return what a head is told that learns of verifications."""
        nodes = TokenTree(tree.tokens, tree.parents, tree.depths, tree.ranks, tree.ancestors)
        order = torch.arange(tree.parents.shape[1], device=tree.parents.device)
        real = (tree.parents >= 0) | (order == 0)
        return Verified(nodes, logits, real & slots.active[:, None], choice.path)

    def _follow(self, tree: TokenTree, choice: Acceptance) -> Tensor:
        """Return the tokens behind the nodes of accepted paths, int64 ``[B, D + 1]``."""
        order = torch.arange(self.shape.depth + 1, device=tree.tokens.device)
        follow = tree.tokens.gather(1, choice.path).roll(-1, 1)
        return torch.where(order == choice.count[:, None], choice.bonus[:, None], follow)


def _used(draws: Draws) -> int:
    """Return how many uniforms per slot have been read; an oracle's are counted by itself."""
    return draws.used if isinstance(draws, UniformDraws) else 0
