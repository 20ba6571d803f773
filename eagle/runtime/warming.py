"""What requests are going to need, compiled and captured before the first one comes.

Knows how passes are executed, and no request: all is run over slots that nobody has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eagle.cycle import PREFILL, Piece, Slots
from eagle.plugin import SamplingParams
from eagle.runtime.packing import SIZES
from eagle.runtime.runtime import FEW, PIECES, Runtime

__all__ = ["warm_up"]

_KINDS = (SamplingParams(temperature=0), SamplingParams(temperature=1))
_SHORT = 16  # tokens of prompts that are read together
_TIMES = 2  # that a packed pass is run: where it is not captured, the second time compiles it


@dataclass(frozen=True)
class _Nobody:
    """A prompt of no request."""

    prompt: list[int]
    params: SamplingParams


@torch.inference_mode()
def warm_up(runtime: Runtime, slots: Slots, limit: int) -> None:
    """Capture cycles over 1, 2, 4, ... of the slots and prompts of all lengths; greedy and sampled.

    Of each width all trees that may be chosen there, each once: where a seed's text follows the
    tree, sampled cycles may have one with a seed that was given and another one without.
    Cycles of texts with top-k or top-p, logits processors or log probabilities are left to their
    time. Nothing is done where nothing is captured.

    Args:
        runtime: what runs them.
        slots: allocated by it; nobody may have one.
        limit: how many requests are decoded at once, at most.
    """
    total = slots.root.shape[0]
    # Most first: what is compiled for them serves fewer, too, but for one.
    widths = sorted({min(runtime.bucket(n), total) for n in range(1, total + 1)}, reverse=True)
    for width in widths:
        part = slots.first(width)
        for params in _KINDS:
            sampling = part.sampling.become([params] * width)
            runtime.ask_kernels(sampling)
            trees = runtime.cycle.foreseen(width, sampled=not sampling.greedy, slots=limit)
            for tree in trees:
                if not runtime.graph:
                    return
                runtime.run(part, sampling, 1, None, tree)
    runtime.expect(widths)
    for params in _KINDS:
        _read(runtime, slots, params)
    for slot in range(min(FEW + 1, total)):
        runtime.cycle.idle(slots, slot)


def _read(runtime: Runtime, slots: Slots, params: SamplingParams) -> None:
    """Read prompts of all lengths into the first slot, and some together."""
    device = slots.root.device
    for length in sorted({*PIECES, *SIZES, PREFILL + 1}):
        if length < runtime.cycle.rows:
            nobody = _Nobody([0] * length, params)
            uniform = torch.zeros(1, 1, dtype=torch.float64, device=device)
            runtime.read(slots, [Piece(0, nobody, 0, length)], uniform)
    count = FEW + 1
    if not runtime.cycle.packs or slots.root.shape[0] < count or runtime.cycle.rows <= _SHORT:
        return
    nobody = _Nobody([0] * _SHORT, params)
    for _ in range(_TIMES):
        uniforms = torch.zeros(count, 1, dtype=torch.float64, device=device)
        runtime.read(slots, [Piece(n, nobody, 0, _SHORT) for n in range(count)], uniforms)
