"""One cycle: draft, verify, accept, commit. Knows the five roles and none of their strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eagle.cache import BLOCK, Pages, Step
from eagle.cycle.drafter import HeadDrafter
from eagle.cycle.pieces import Piece, Read
from eagle.cycle.processing import Processing
from eagle.cycle.reports import Report, Reported, report_of
from eagle.kernels import argmax
from eagle.plugin import (
    Acceptance,
    AcceptanceRule,
    AttentionBackend,
    Committed,
    DraftHead,
    Draws,
    FeatureExtractor,
    OfferingPart,
    OwnVocabulary,
    ParallelHead,
    Role,
    Sampling,
    SamplingParams,
    TargetProbs,
    TokenTree,
    TreeBuilder,
    UniformDraws,
    VaryingTree,
    check_draft_vocab,
    check_draws,
    check_states,
    check_tree,
    probabilities,
)
from eagle.target import Forward, Target

__all__ = ["PHASES", "PREFILL", "Cycle", "Slots"]

PHASES = ("draft", "verify", "accept", "commit")
"""The parts of a cycle, in order: methods of `Cycle`."""

PREFILL = 512  # tokens of a prompt read in one pass: bounds the memory that logits and masks take
_SPAN = BLOCK  # spans are rounded up to this, so that few different shapes occur


@dataclass(frozen=True)
class Slots:
    """What B slots carry from cycle to cycle: tensors at fixed addresses, changed in place.

    Attributes:
        lengths: int64 ``[B]``, rows committed to the caches: the text without the root.
        root: int64 ``[B]``, the last committed token, not cached yet.
        state: ``[B, S]``, the head's state after the root.
        active: bool ``[B]``; an idle slot stays where it is.
        uniforms: float64 ``[B, U]``, the randomness of the next cycle.
        keys: int64 ``[B]``, of the noise of the slots' texts (`eagle.plugin.Draws.race`).
        outcome: int64 ``[B, D + 3]``, the one thing read back: tokens committed, whether NaN
            or infinity decided it (1 the target's, 2 the head's, 3 both; plus 4 where logits
            processors left nothing to choose from), and the committed tokens.
        sampling: the slots' parameters, to be changed with `Sampling.become`.
        report: log probabilities of the outcome's tokens, where a pass is asked for them.
    """

    lengths: Tensor
    root: Tensor
    state: Tensor
    active: Tensor
    uniforms: Tensor
    keys: Tensor
    outcome: Tensor
    sampling: Sampling
    report: Report

    @property
    def carried(self) -> tuple[Tensor, ...]:
        """What a cycle changes, beside caches behind the committed rows."""
        return (self.lengths, self.root, self.state, self.active, self.outcome)

    def first(self, count: int) -> Slots:
        """Return the first slots, as views of these tensors: a cycle over them is no other's."""
        return Slots(
            lengths=self.lengths[:count],
            root=self.root[:count],
            state=self.state[:count],
            active=self.active[:count],
            uniforms=self.uniforms[:count],
            keys=self.keys[:count],
            outcome=self.outcome[:count],
            sampling=self.sampling.first(count),
            report=self.report.first(count),
        )


class Cycle:
    """The components of a decoder and the cycle they run, free of host reads.

    Only a cycle with `Processing` reads device values: it runs processors on the host.

    Attributes:
        draws: makes the draws of a pass from its uniforms; an oracle may take its place.
        timer: called with the name of each phase as it begins, and with ``end``.
        compiled: what to call in place of the methods of these names, the cycle first.
        ahead: the target's pass compiled ahead of time, in place of its `forward`.
        trees: the tree builders to choose from; one, except with a `VaryingTree`.
        tree: the one that the next cycle drafts with; see `use`.
        drafting: the head, or the part of it that drafts for this tree.
        shape: of its trees.
        depth: D of the deepest trees.
    """

    draws: Callable[[Tensor], Draws] = UniformDraws

    def __init__(
        self,
        target: Target,
        features: FeatureExtractor,
        head: DraftHead,
        tree: TreeBuilder,
        attention: AttentionBackend,
        acceptance: AcceptanceRule,
    ) -> None:
        self.target, self.features, self.head = target, features, head
        self.attention, self.acceptance = attention, acceptance
        self.trees = tuple(tree.alternatives) if isinstance(tree, VaryingTree) else (tree,)
        self.use(0)
        shapes = [one.shape for one in self.trees]
        self.depth = max(shape.depth for shape in shapes)
        self.draws_per_cycle = max(
            one.uniforms + acceptance.uniforms(shape)
            for one, shape in zip(self.trees, shapes, strict=True)
        )
        # Rows behind the committed ones that a cycle writes, in a slot that is at its end too:
        # a cycle that was started ahead may go on from there.
        written = max(max(s.nodes, s.expansions, s.depth + 1) for s in shapes)
        self.headroom = self.depth + 1 + written
        self._checked: list[TreeBuilder] = []
        self.timer: Callable[[str], None] | None = None
        self.compiled: dict[str, Callable[..., object]] = {}
        self.ahead: Forward | None = None

    def use(self, number: int) -> None:
        """Draft with the tree builder of that number from now on."""
        self.tree = self.trees[number]
        self.shape = self.tree.shape
        self.drafting = self.head
        if getattr(self.tree, "offered", False) and isinstance(self.head, OfferingPart):
            self.drafting = self.head.offering

    @property
    def paged(self) -> bool:
        """Whether slots' rows lie in blocks: where the attention backend finds them there."""
        return getattr(self.attention, "paged", False)

    @property
    def shares(self) -> bool:
        """Whether slots may have blocks in common: where the head keeps nothing elsewhere."""
        return self.paged and getattr(self.head, "paged", False)

    @property
    def packs(self) -> bool:
        """Whether several prompts may be read in one pass: where backend and head know how."""
        head = getattr(self.head, "packs", getattr(self.head, "paged", False))
        return head and getattr(self.attention, "packs", False)

    def blocks(self, rows: int) -> int:
        """Return how many blocks a text needs that grows to *rows* committed rows."""
        return -(-(rows + self.headroom) // BLOCK)

    def tokens(self, blocks: int) -> int:
        """Return the longest text that fits into so many blocks."""
        return max(blocks * BLOCK - self.headroom, 0)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the target's keys and values, and of as much of a head's layer."""
        target = self.target
        row: int = 2 * target.kv_heads * target.head_dim * target.dtype.itemsize
        return BLOCK * row * (target.info.layers + 1)

    def allocate(self, slots: int, rows: int, blocks: int | None = None) -> Slots:
        """Allocate caches of *rows* committed rows per slot, and the slots.

        Args:
            slots: how many.
            rows: of each, at most.
            blocks: where rows lie in blocks, how many there are for all slots together, which then
                have none until `assign` gives them some; None for as many as slots can fill, and
                each slot has its own.
        """
        device = self.target.device
        # Asked here, since compilers do not follow what a protocol asks of an object.
        self._parallel = self.head if isinstance(self.head, ParallelHead) else None
        self._vocab = self.head.draft_vocab if isinstance(self.head, OwnVocabulary) else None
        if self._vocab is not None:
            check_draft_vocab(self._vocab, self.target.info.vocab_size)
        self._state_size = self.head.state_size(self.target.info)
        self.rows = self.blocks(rows) * BLOCK
        self.pages: Pages | None = None
        if self.paged:
            self.pages = Pages.whole(slots, self.rows, device)
            if blocks is not None:
                self.pages = Pages(self.pages.table.zero_(), 1 + blocks)
        self.cache = self.target.make_cache(slots, self.rows, self.pages)
        if self.shares:
            self.head.allocate(slots, self.rows, self.pages)
        else:
            self.head.allocate(slots, self.rows)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return Slots(
            lengths=integers(slots),
            root=integers(slots),
            state=torch.zeros(slots, self._state_size, dtype=self.target.dtype, device=device),
            active=torch.zeros(slots, dtype=torch.bool, device=device),
            uniforms=torch.zeros(slots, self.draws_per_cycle, dtype=torch.float64, device=device),
            keys=integers(slots),
            outcome=integers(slots, self.depth + 3),
            sampling=Sampling.of([SamplingParams()] * slots, device),
            report=Report.empty(slots, self.depth + 1, self.target.info.vocab_size, device),
        )

    def assign(self, slot: int, blocks: Sequence[int]) -> None:
        """Let a slot's rows lie in some blocks, in order; behind them is what nobody reads."""
        if self.pages is not None:
            row = torch.zeros(self.pages.table.shape[1], dtype=torch.int32)
            row[: len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
            self.pages.table[slot].copy_(row, non_blocking=True)

    def move(self, slots: Slots, source: int, target: int) -> None:
        """Move a text from its slot to a free one, where its rows lie in blocks and stay there.

        The slot that it leaves idles; see `shares` for where this can be done.
        """
        assert self.pages is not None
        for part in (*slots.carried, slots.uniforms, slots.keys, self.pages.table):
            part[target].copy_(part[source])
        self.idle(slots, source)
        self.assign(source, ())

    @staticmethod
    def idle(slots: Slots, slot: int) -> None:
        """Let a slot hold nothing, and take no part in what cycles commit."""
        slots.active[slot] = False
        slots.lengths[slot] = 0

    def clear(self, slots: Slots, slot: int) -> None:
        """Overwrite what a text of NaN left in a slot, which idle cycles would go on from.

        A row that a mask hides takes part in a dense attention with weight zero, and zero times
        NaN is NaN. Blocks need no such thing: what is not a text's own is never read there.
        """
        slots.root[slot] = 0
        slots.state[slot] = 0
        if self.pages is None:
            self.cache.store.clear(slot)
        if self.shares:
            return
        # A head's rows are its own affair. What it absorbs overwrites them, and reads no others.
        target, size = self.target, self.features.feature_size(self.target.info)
        place = torch.tensor([slot], device=target.device)
        for start in range(0, self.rows, PREFILL):
            count = min(PREFILL, self.rows - start)
            tokens = torch.zeros(1, count, dtype=torch.int64, device=target.device)
            nothing = torch.zeros(1, count, size, dtype=target.dtype, device=target.device)
            step = Step.chain(torch.full_like(place, start), count, start + count, place)
            none = torch.zeros_like(place)  # of these entries is real
            self._absorb(Committed(tokens, tokens, nothing, none, step))

    def span(self, committed: int) -> int:
        """Return how many cache rows a cycle reads when no slot has more than *committed*."""
        return min(-(-(committed + self.headroom) // _SPAN) * _SPAN, self.rows)

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
            slots.report.write(report_of(_pick(logits, choice.path), follow))
        self._mark("end")

    def _check_draft(self, tree: TokenTree, slots: Slots, draws: Draws) -> None:
        check_draws(Role.TREE, "build", _used(draws), self.tree.uniforms)
        if not any(self.tree is one for one in self._checked):
            # Once: it reads the device. With graphs, before anything is captured.
            self._checked.append(self.tree)
            check_tree(tree, self.shape, slots.root)

    def _phase(self, name: str, *args: object) -> Any:
        self._mark(name)
        return self.phase(name, *args)

    def phase(self, name: str, *args: object) -> Any:
        """Call the phase of that name, compiled where it is."""
        return self.compiled.get(name, getattr(type(self), name))(self, *args)

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
            self._vocab,
        )
        return drafter.finish(self.tree.build(drafter, draws))

    def verify(self, slots: Slots, tree: TokenTree, span: int) -> tuple[Tensor, Tensor]:
        """Return the target's logits ``[B, N, V]`` and features ``[B, N, F]`` at every node."""
        step = Step.tree(slots.lengths, tree.depths, tree.ancestors, span)
        last, hidden = self._forward(tree.tokens, step)
        return self.target.logits(last), self.features.extract(last, hidden)

    def accept(
        self, tree: TokenTree, scores: Tensor, sampling: Sampling, draws: Draws
    ) -> Acceptance:
        """Return the accepted paths and the bonus tokens."""
        return self.acceptance.accept(tree, TargetProbs(scores, sampling), self.shape, draws)

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
            features=_pick(features, choice.path),
            count=gain,
            step=Step.chain(slots.lengths, self.shape.depth + 1, span),
        )
        states = self._absorb(committed)
        bad = _stuck(_pick(logits, choice.path)) + 2 * ~states.isfinite().flatten(1).all(1)
        if scores is not logits:
            bad = bad + 4 * _stuck(_pick(scores, choice.path))
        slots.state.copy_(_pick(states, choice.count[:, None])[:, 0])
        slots.root.copy_(torch.where(slots.active, choice.bonus, slots.root))
        slots.lengths.add_(gain)
        outcome = torch.cat((torch.stack((gain, bad), 1), follow), 1)
        slots.outcome[:, : outcome.shape[1]].copy_(outcome)

    def _follow(self, tree: TokenTree, choice: Acceptance) -> Tensor:
        """Return the tokens behind the nodes of accepted paths, int64 ``[B, D + 1]``."""
        order = torch.arange(self.shape.depth + 1, device=tree.tokens.device)
        follow = tree.tokens.gather(1, choice.path).roll(-1, 1)
        return torch.where(order == choice.count[:, None], choice.bonus[:, None], follow)

    def _absorb(self, committed: Committed) -> Tensor:
        states = self.head.absorb(committed)
        check_states(states.shape[-1], self._state_size, "absorb")
        return states

    def prefill(
        self,
        slots: Slots,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
        uniform: Tensor,
        processing: Processing | None = None,
        *,
        start: int = 0,
        end: int | None = None,
        reports: bool = False,
    ) -> None:
        """Read a prompt into one slot, choose its first token, and make the slot active.

        Args:
            slots: the slots.
            slot: which one; its outcome is the first token.
            prompt: token ids, at least one.
            sampling: the parameters of this one request.
            uniform: float64 ``[1, 1]``, the randomness of the first token.
            processing: the logits processors of the slots, if any has some.
            start: tokens that were read before.
            end: read no further than this; short of the prompt's end, nothing is chosen.
            reports: say in `slots.report` what the target gave the first token.
        """
        device = self.target.device
        stop = len(prompt) if end is None else end
        tokens = torch.tensor([[*prompt, 0]], device=device)
        for first in range(start, stop, PREFILL):
            piece = tokens[:, first : min(first + PREFILL, stop) + 1]
            count = piece.shape[1] - 1
            place = torch.tensor([slot, first, count], device=device)
            last = first + count == len(prompt)
            choose = (sampling, uniform) if last else None
            span = self.span(first + count)
            self.read(slots, piece, place, span, choose, processing, reports=reports)

    def read(
        self,
        slots: Slots,
        tokens: Tensor,
        place: Tensor,
        span: int,
        end: tuple[Sampling, Tensor] | None,
        processing: Processing | None = None,
        *,
        reports: bool = False,
    ) -> None:
        """Read one piece of a prompt into one slot.

        Args:
            slots: the slots.
            tokens: int64 ``[1, C + 1]``: C tokens to read, and the one behind them.
            place: int64 ``[3]``: which slot, where the piece starts, and how many of its tokens
                count; what is behind them is padding.
            span: rows of the cache that are read.
            end: for the prompt's last piece, what `prefill` takes: a token is chosen, and the
                slot becomes active.
            processing: the logits processors of the slots, if any has some.
            reports: of that token, `slots.report` says what the target gave it.
        """
        slot, start, count = torch.split(place, 1)
        step = Step.chain(start, tokens.shape[1] - 1, span, slot)
        last, hidden = self._forward(tokens[:, :-1], step)
        features = self.features.extract(last, hidden)
        slots.lengths.index_copy_(0, slot, start + count)
        if end is None:
            self._absorb(Committed(tokens[:, 1:], tokens[:, :-1], features, count, step))
            return
        sampling, uniform = end
        final = (count - 1)[:, None]
        logits = scores = self.target.logits(_pick(last, final))[:, 0]
        bad = _stuck(logits[:, None]).to(torch.int64)
        if processing:
            scores = processing.after_text(int(slot), logits)
            bad = bad + 4 * _stuck(scores[:, None])
        first = self._first(scores, sampling, uniform)
        follow = tokens[:, 1:].scatter(1, final, first[:, None])
        committed = Committed(follow, tokens[:, :-1], features, count, step)
        state = _pick(self._absorb(committed), final)[:, 0]
        bad = bad + 2 * ~state.isfinite().all(1)
        self._begin(slots, slot, first, state, bad, torch.ones_like(slot, dtype=torch.bool))
        if reports:
            slots.report.write_first(slot, report_of(logits[:, None], first[:, None]))

    def read_together(
        self, slots: Slots, pieces: Sequence[Piece[Read]], sampling: Sampling, uniforms: Tensor
    ) -> None:
        """Read pieces of several prompts in one packed pass.

        A slot whose prompt goes on behind its piece stays idle, and what cycles write into it lies
        behind what was read.

        Args:
            slots: the slots.
            pieces: at most one for each slot.
            sampling: the parameters of their requests.
            uniforms: float64 ``[S, 1]``, the randomness of the first tokens of prompts that end.
        """
        device = self.target.device
        texts = [(*one.request.prompt, 0)[one.start : one.end + 1] for one in pieces]
        sent = torch.tensor(
            [[t for text in texts for t in text[:-1]], [t for text in texts for t in text[1:]]],
            device=device,
        )
        parts = tuple((one.slot, one.start, one.end - one.start) for one in pieces)
        ended = torch.tensor([one.last for one in pieces], device=device)
        step = Step.packed(parts, device)
        segments = step.segments
        assert segments is not None
        if self.pages is not None:
            step = replace(step, table=self.pages.table.index_select(0, segments.slots))
        reports = any(one.reports for one in pieces)
        first, state, bad, found = self.phase(
            "pack", sent[:1], sent[1:], step, ended, sampling, uniforms, reports
        )
        slots.lengths.index_copy_(0, segments.slots, step.lengths + segments.offsets.diff())
        self._begin(slots, segments.slots, first, state, bad, ended)
        if found is not None:
            slots.report.write_first(segments.slots.long(), found)

    def pack(
        self,
        tokens: Tensor,
        follow: Tensor,
        step: Step,
        ended: Tensor,
        sampling: Sampling,
        uniforms: Tensor,
        reports: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Reported | None]:
        """Run a packed pass; nothing in it depends on how many slots there are.

        Args:
            tokens: int64 ``[1, T]``.
            follow: int64 ``[1, T]``, the tokens behind them; any where a prompt ends.
            step: packed.
            ended: bool ``[S]``, which prompts end with their pieces.
            sampling: the parameters of S requests.
            uniforms: float64 ``[S, 1]``.
            reports: whether to say what the target gave the tokens.

        Returns:
            The token behind each piece, int64 ``[S]``, the head's states after it ``[S, H]``,
            what is wrong with them, as in `Slots.outcome`, and what the target gave the tokens.
        """
        assert step.segments is not None
        last, hidden = self._forward(tokens, step)
        features = self.features.extract(last, hidden)
        final = step.segments.offsets[1:].long() - 1
        scores = self.target.logits(last[:, final])[0]
        bad = _stuck(scores[:, None]).to(torch.int64)
        first = self._first(scores, sampling, uniforms)
        first = torch.where(ended, first, follow[0, final])
        follow = follow.index_copy(1, final, first[None])
        own = step if self.shares else replace(step, table=None)  # of the target's cache
        count = step.segments.offsets[-1:].long()
        state = self._absorb(Committed(follow, tokens, features, count, own))[0, final]
        found = report_of(scores[:, None], first[:, None]) if reports else None
        return first, state, bad + 2 * ~state.isfinite().all(1), found

    @staticmethod
    def _begin(
        slots: Slots, slot: Tensor, first: Tensor, state: Tensor, bad: Tensor, active: Tensor
    ) -> None:
        """Let slots ``[S]`` go on from their first tokens, if they are *active* now."""
        outcome = torch.stack((torch.ones_like(bad), bad, first), 1)
        slots.root.index_copy_(0, slot, first)
        slots.state.index_copy_(0, slot, state.to(slots.state.dtype))
        slots.active.index_copy_(0, slot, active)
        slots.outcome[:, :3].index_copy_(0, slot, outcome)

    def _forward(self, tokens: Tensor, step: Step) -> tuple[Tensor, list[Tensor]]:
        forward = self.ahead or self.target.forward
        return forward(tokens, step, self.cache, self.attention, self.features.layers)

    def _first(self, scores: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
        if sampling.greedy:
            return argmax(scores)
        return self.draws(uniform).categorical(probabilities(scores, sampling))


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[b, index[b, i]]`` for ``[B, N, S]`` and ``[B, M]``: ``[B, M, S]``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _stuck(scores: Tensor) -> Tensor:
    """Return bool ``[B]``: whether some of ``[B, M, V]`` give no token a finite best score."""
    return ~scores.amax(-1).isfinite().all(1)


def _used(draws: Draws) -> int:
    """Return how many uniforms per slot have been read; an oracle's are counted by itself."""
    return draws.used if isinstance(draws, UniformDraws) else 0
