"""One cycle: draft, verify, accept, commit. Knows the five roles and none of their strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.cache import Step
from eagle.drafter import CycleDrafter
from eagle.processing import Processing
from eagle.roles import AcceptanceRule, AttentionBackend, DraftHead, FeatureExtractor, TreeBuilder
from eagle.sampling import Draws, Sampling, TargetProbs, UniformDraws, probabilities
from eagle.target import Target

__all__ = ["Cycle", "Slots"]

_PREFILL = 512  # tokens of a prompt read in one pass: bounds the memory that logits and masks take
_SPAN = 64  # spans are rounded up to this, so that few different shapes occur


@dataclass(frozen=True)
class Slots:
    """What B slots carry from cycle to cycle: tensors at fixed addresses, changed in place.

    Attributes:
        lengths: int64 ``[B]``, rows committed to the caches: the text without the root.
        root: int64 ``[B]``, the last committed token, not cached yet.
        state: ``[B, S]``, the head's state after the root.
        active: bool ``[B]``; an idle slot stays where it is.
        uniforms: float64 ``[B, U]``, the randomness of the next cycle.
        outcome: int64 ``[B, D + 3]``, the one thing read back: tokens committed, whether NaN
            or infinity decided it (1 the target's, 2 the head's, 3 both; plus 4 where logits
            processors left nothing to choose from), and the committed tokens.
    """

    lengths: Tensor
    root: Tensor
    state: Tensor
    active: Tensor
    uniforms: Tensor
    outcome: Tensor


class Cycle:
    """The components of a decoder and the cycle they run, free of host reads.

    Only a cycle with `Processing` reads device values: it runs processors on the host.

    Attributes:
        draws: makes the draws of a pass from its uniforms; an oracle may take its place.
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
        self.tree, self.attention, self.acceptance = tree, attention, acceptance
        self.shape = tree.shape
        self.draws_per_cycle = tree.uniforms + acceptance.uniforms(tree.shape)
        self.headroom = max(self.shape.nodes, self.shape.expansions, self.shape.depth + 1)

    def allocate(self, slots: int, rows: int) -> Slots:
        """Allocate caches of *rows* committed rows per slot, and the slots."""
        device = self.target.device
        self.rows = rows + self.headroom
        self.cache = self.target.make_cache(slots, self.rows)
        self.head.allocate(slots, self.rows)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return Slots(
            lengths=integers(slots),
            root=integers(slots),
            state=torch.zeros(
                slots,
                self.head.state_size(self.target.info),
                dtype=self.target.dtype,
                device=device,
            ),
            active=torch.zeros(slots, dtype=torch.bool, device=device),
            uniforms=torch.zeros(slots, self.draws_per_cycle, dtype=torch.float64, device=device),
            outcome=integers(slots, self.shape.depth + 3),
        )

    def span(self, committed: int) -> int:
        """Return how many cache rows a cycle reads when no slot has more than *committed*."""
        return min(-(-(committed + self.headroom) // _SPAN) * _SPAN, self.rows)

    def run(
        self, slots: Slots, sampling: Sampling, span: int, processing: Processing | None = None
    ) -> None:
        """Draft, verify, accept and commit once, for all slots; `slots.outcome` says what came."""
        draws = self.draws(slots.uniforms)
        drafter = CycleDrafter(self.head, slots.root, slots.state, slots.lengths, span, sampling)
        tree = self.tree.build(drafter, draws)

        step = Step.tree(slots.lengths, tree.depths, tree.ancestors, span)
        last, hidden = self._forward(tree.tokens, step)
        logits = self.target.logits(last)

        scores = processing.at_nodes(logits, tree) if processing else logits
        choice = self.acceptance.accept(tree, TargetProbs(scores, sampling), self.shape, draws)

        self.cache.store.compact(slots.lengths, choice.path)
        features = _pick(self.features.extract(last, hidden), choice.path)
        order = torch.arange(self.shape.depth + 1, device=logits.device)
        follow = tree.tokens.gather(1, choice.path).roll(-1, 1)
        follow = torch.where(order == choice.count[:, None], choice.bonus[:, None], follow)
        absorb = Step.chain(slots.lengths, self.shape.depth + 1, span)
        states = self.head.absorb(follow, features, absorb)

        gain = torch.where(slots.active, choice.count + 1, 0)
        bad = _stuck(_pick(logits, choice.path)) + 2 * ~states.isfinite().flatten(1).all(1)
        if processing:
            bad = bad + 4 * _stuck(_pick(scores, choice.path))
        slots.state.copy_(_pick(states, choice.count[:, None])[:, 0])
        slots.root.copy_(torch.where(slots.active, choice.bonus, slots.root))
        slots.lengths.add_(gain)
        slots.outcome.copy_(torch.cat((torch.stack((gain, bad), 1), follow), 1))

    def prefill(
        self,
        slots: Slots,
        slot: int,
        prompt: Sequence[int],
        sampling: Sampling,
        uniform: Tensor,
        processing: Processing | None = None,
    ) -> None:
        """Read a prompt into one slot, choose its first token, and make the slot active.

        Args:
            slots: the slots.
            slot: which one; its outcome is the first token.
            prompt: token ids, at least one.
            sampling: the parameters of this one request.
            uniform: float64 ``[1, 1]``, the randomness of the first token.
            processing: the logits processors of the slots, if any has some.
        """
        tokens = torch.tensor([prompt], device=self.target.device)
        states = logits = None
        bad = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        for start in range(0, len(prompt), _PREFILL):
            chunk = tokens[:, start : start + _PREFILL]
            step = Step.chain(
                torch.tensor([start], device=tokens.device),
                chunk.shape[1],
                self.span(start + chunk.shape[1]),
                slot,
            )
            last, hidden = self._forward(chunk, step)
            follow = tokens[:, start + 1 : start + 1 + _PREFILL]
            if follow.shape[1] < chunk.shape[1]:  # the last chunk: its last token is to be chosen
                logits = scores = self.target.logits(last[:, -1:])[:, 0]
                bad = bad + _stuck(logits[:, None])
                if processing:
                    scores = processing.after_text(slot, logits)
                    bad = bad + 4 * _stuck(scores[:, None])
                first = self._first(scores, sampling, uniform)
                follow = torch.cat((follow, first[:, None]), 1)
            states = self.head.absorb(follow, self.features.extract(last, hidden), step)
        assert states is not None
        bad = bad + 2 * ~states[:, -1].isfinite().all(1)
        slots.lengths[slot] = len(prompt)
        slots.root[slot] = follow[0, -1]
        slots.state[slot] = states[0, -1]
        slots.active[slot] = True
        slots.outcome[slot, :3] = torch.cat((torch.ones_like(bad), bad, follow[0, -1:]))

    def _forward(self, tokens: Tensor, step: Step) -> tuple[Tensor, list[Tensor]]:
        layers = self.features.layers
        return self.target.forward(tokens, step, self.cache, self.attention, layers)

    def _first(self, scores: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
        if sampling.greedy:
            return scores.argmax(-1)
        return self.draws(uniform).categorical(probabilities(scores, sampling))


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[b, index[b, i]]`` for ``[B, N, S]`` and ``[B, M]``: ``[B, M, S]``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _stuck(scores: Tensor) -> Tensor:
    """Return bool ``[B]``: whether some of ``[B, M, V]`` give no token a finite best score."""
    return ~scores.amax(-1).isfinite().all(1)
