"""How prompts are read into slots, one by itself or several in a packed pass.

Knows models over their caches and how a first token is chosen; knows no cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eagle.cache import Step
from eagle.cycle.models import PREFILL, Models, pick, stuck
from eagle.cycle.pieces import Piece, Read
from eagle.cycle.processing import Processing
from eagle.cycle.reports import Reported, report_of
from eagle.cycle.slots import Slots
from eagle.kernels import argmax
from eagle.plugin import Committed, Draws, Sampling, UniformDraws, probabilities

__all__ = ["Packed", "PromptReader"]


@dataclass(frozen=True)
class Packed:
    """What is read in one packed pass.

    Attributes:
        tokens: int64 ``[1, T]``.
        follow: int64 ``[1, T]``, the tokens behind them; any where a prompt ends.
        step: packed, of S segments. Entries behind the last segment count for nothing.
        ended: bool ``[S]``, which prompts end with their segments.
    """

    tokens: Tensor
    follow: Tensor
    step: Step
    ended: Tensor


class PromptReader(Models):
    """Models that read prompts and choose the first tokens behind them.

    Attributes:
        draws: makes the draws of a pass from its uniforms; an oracle may take its place.
    """

    draws: Callable[[Tensor], Draws] = UniformDraws

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
        last, hidden = self.forward(tokens[:, :-1], step)
        features = self.features.extract(last, hidden)
        slots.lengths.index_copy_(0, slot, start + count)
        if end is None:
            self.absorb(Committed(tokens[:, 1:], tokens[:, :-1], features, count, step))
            return
        sampling, uniform = end
        final = (count - 1)[:, None]
        logits = scores = self.target.logits(pick(last, final))[:, 0]
        bad = stuck(logits[:, None]).to(torch.int64)
        if processing:
            scores = processing.after_text(int(slot), logits)
            bad = bad + 4 * stuck(scores[:, None])
        first = self._first(scores, sampling, uniform)
        follow = tokens[:, 1:].scatter(1, final, first[:, None])
        committed = Committed(follow, tokens[:, :-1], features, count, step)
        state = pick(self.absorb(committed), final)[:, 0]
        bad = bad + 2 * ~state.isfinite().all(1)
        slots.begin(slot, first, state, bad, torch.ones_like(slot, dtype=torch.bool))
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
        texts = [one.text for one in pieces]
        sent = torch.tensor(
            [[t for text in texts for t in text[:-1]], [t for text in texts for t in text[1:]]]
        ).to(device, non_blocking=True)
        parts = tuple((one.slot, one.start, one.end - one.start) for one in pieces)
        ended = torch.tensor([one.last for one in pieces]).to(device, non_blocking=True)
        packed = Packed(sent[:1], sent[1:], Step.packed(parts, device), ended)
        reports = any(one.reports for one in pieces)
        self.read_packed(slots, packed, sampling, uniforms, reports=reports)

    def read_packed(
        self, slots: Slots, packed: Packed, sampling: Sampling, uniforms: Tensor, *, reports: bool
    ) -> None:
        """Run a packed pass and let the slots whose prompts end in it begin.

        Several segments may say the same of one slot.

        Args:
            slots: the slots.
            packed: what is read.
            sampling: the parameters of S requests.
            uniforms: float64 ``[S, 1]``.
            reports: whether `slots.report` says what the target gave the first tokens.
        """
        step, ended = packed.step, packed.ended
        segments = step.segments
        assert segments is not None
        if self.pages is not None:
            step = replace(step, table=self.pages.table.index_select(0, segments.slots))
        first, state, bad, found = self.phase(
            "pack", packed.tokens, packed.follow, step, ended, sampling, uniforms, reports
        )
        slots.lengths.index_copy_(0, segments.slots, step.lengths + segments.offsets.diff())
        slots.begin(segments.slots, first, state, bad, ended)
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
        last, hidden = self.forward(tokens, step)
        features = self.features.extract(last, hidden)
        final = step.segments.offsets[1:].long() - 1
        # An empty segment says what the one before it says, to the bit.
        told = (step.segments.offsets.diff() > 0).cumsum(0) - 1
        scores = self.target.logits(last[:, final])[0, told]
        bad = stuck(scores[:, None]).to(torch.int64)
        first = self._first(scores, sampling, uniforms)
        first = torch.where(ended, first, follow[0, final])
        follow = follow.index_copy(1, final, first[None])
        own = step if self.shares else replace(step, table=None)  # of the target's cache
        count = step.segments.offsets[-1:].long()
        state = self.absorb(Committed(follow, tokens, features, count, own))[0, final]
        found = report_of(scores[:, None], first[:, None]) if reports else None
        return first, state, bad + 2 * ~state.isfinite().all(1), found

    def _first(self, scores: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
        if sampling.greedy:
            return argmax(scores)
        return self.draws(uniform).categorical(probabilities(scores, sampling))
