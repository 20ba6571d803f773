"""What slots carry from cycle to cycle, in place; knows no model, and not where its rows lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.cycle.reports import Report
from eagle.plugin import Sampling, SamplingParams

__all__ = ["Slots"]


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
        memory: ``[B, ...]`` each, what the head learned of verifications; see
            `eagle.plugin.LearnsVerified`.
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
    memory: tuple[Tensor, ...] = ()

    @property
    def carried(self) -> tuple[Tensor, ...]:
        """What a cycle changes, beside caches behind the committed rows."""
        return (self.lengths, self.root, self.state, self.active, self.outcome, *self.memory)

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
            memory=tuple(part[:count] for part in self.memory),
        )

    @classmethod
    def empty(
        cls,
        count: int,
        *,
        depth: int,
        uniforms: int,
        state_size: int,
        vocab: int,
        dtype: torch.dtype,
        device: torch.device,
        memory: tuple[Tensor, ...] = (),
    ) -> Slots:
        """Allocate slots of which none holds a text.

        Args:
            count: B.
            depth: D of the deepest trees.
            uniforms: U of a cycle, at most.
            state_size: S of the head.
            vocab: V of the target.
            dtype: of the states.
            device: where all of it lies.
            memory: the head's, if it learns of verifications.
        """

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            lengths=integers(count),
            root=integers(count),
            state=torch.zeros(count, state_size, dtype=dtype, device=device),
            active=torch.zeros(count, dtype=torch.bool, device=device),
            uniforms=torch.zeros(count, uniforms, dtype=torch.float64, device=device),
            keys=integers(count),
            outcome=integers(count, depth + 3),
            sampling=Sampling.of([SamplingParams()] * count, device),
            report=Report.empty(count, depth + 1, vocab, device),
            memory=memory,
        )

    def begin(
        self, slot: Tensor, first: Tensor, state: Tensor, bad: Tensor, active: Tensor
    ) -> None:
        """Let some slots go on from their first tokens, if they are *active* now.

        What the head learned of the texts before is forgotten in these.

        Args:
            slot: int64 ``[S]``, which.
            first: int64 ``[S]``, the tokens behind their prompts.
            state: ``[S, H]``, the head's states after these.
            bad: int64 ``[S]``, what is wrong with them, as in `outcome`.
            active: bool ``[S]``.
        """
        outcome = torch.stack((torch.ones_like(bad), bad, first), 1)
        self.root.index_copy_(0, slot, first)
        self.state.index_copy_(0, slot, state.to(self.state.dtype))
        self.active.index_copy_(0, slot, active)
        self.outcome[:, :3].index_copy_(0, slot, outcome)
        for part in self.memory:
            begun = active.view(-1, *[1] * (part.dim() - 1))
            part.index_copy_(0, slot, part.index_select(0, slot).masked_fill(begun, 0))

    def idle(self, slot: int) -> None:
        """Let a slot hold nothing, and take no part in what cycles commit."""
        self.active[slot] = False
        self.lengths[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Move what a slot carries to a free one; the slot that it leaves idles."""
        for part in (*self.carried, self.uniforms, self.keys):
            part[target].copy_(part[source])
        self.idle(source)
