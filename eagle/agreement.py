"""Whether the kernels of sampling say here what PyTorch's operators say, asked before their use.

Tests hold them together in Triton's interpreter and on the GPUs that there were. A user's GPU,
driver or compiler may be another, and a kernel that is wrong there would change what is said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.cycle import Cycle
from eagle.sampling import Sampling, SamplingParams, TargetProbs, UniformDraws, fusible

__all__ = ["OperatorDraws", "disagreement"]

_CASES = 8
_TEMPERATURES = (0.7, 1.2)  # of the slots
_SPREAD, _NOISE = 3.0, 0.7  # of logits; what draft and target differ by, so that much is accepted


class OperatorDraws(UniformDraws):
    """Draws that no kernel stands for: all goes through PyTorch's operators."""


class _Noise:
    """A drafter whose logits are known text's, with noise."""

    def __init__(self, text: Tensor, sampling: Sampling, seed: int) -> None:
        slots = text.shape[0]
        self.root = torch.zeros(slots, dtype=torch.int64, device=text.device)
        self.sampling = sampling
        self._text, self._generator = text, torch.Generator(text.device).manual_seed(seed)

    def begin(self) -> Tensor:
        return self._logits(1)

    def expand(self, tokens: Tensor, parents: Tensor) -> Tensor:
        return self._logits(tokens.shape[1])

    def _logits(self, width: int) -> Tensor:
        return _noisy(self._text, width, self._generator)


def disagreement(cycle: Cycle) -> str | None:
    """Draft and accept made-up trees in both ways, on the same uniforms, and compare.

    In float32 two right ways may differ where a uniform falls within rounding of a boundary,
    which these fixed cases meet with a probability of about 1e-4; then the operators are used,
    which are slower and say the same.

    Args:
        cycle: whose tree builder and acceptance rule are tried.

    Returns:
        None where both agree, or where there are no kernels; else what is wrong with them.
    """
    target = cycle.target
    sampling = Sampling.of([SamplingParams(temperature=t) for t in _TEMPERATURES], target.device)
    for seed in range(_CASES):
        generator = torch.Generator(target.device).manual_seed(seed)
        size = (len(_TEMPERATURES), 1, target.info.vocab_size)
        text = _SPREAD * torch.randn(size, generator=generator, device=target.device)
        text = text.to(target.dtype)
        logits = _noisy(text, cycle.shape.nodes, generator)
        uniforms = torch.rand(
            len(_TEMPERATURES), cycle.draws_per_cycle, generator=generator, dtype=torch.float64,
            device=target.device,
        )  # fmt: skip
        if not fusible(UniformDraws(uniforms), logits, sampling):
            return None
        expected = _outcome(cycle, text, logits, sampling, OperatorDraws(uniforms), seed)
        try:
            found = _outcome(cycle, text, logits, sampling, UniformDraws(uniforms), seed)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        for name, ours, theirs in zip(_NAMES, found, expected, strict=True):
            if not torch.equal(ours, theirs):
                return f"another {name} than PyTorch's operators in case {seed} of {_CASES}"
    return None


_NAMES = ("tree", "path", "count of accepted tokens", "bonus token")


def _outcome(
    cycle: Cycle,
    text: Tensor,
    logits: Tensor,
    sampling: Sampling,
    draws: UniformDraws,
    seed: int,
) -> tuple[Tensor, ...]:
    tree = cycle.tree.build(_Noise(text, sampling, seed), draws)
    choice = cycle.acceptance.accept(tree, TargetProbs(logits, sampling), cycle.shape, draws)
    return tree.tokens, choice.path, choice.count, choice.bonus


def _noisy(text: Tensor, width: int, generator: torch.Generator) -> Tensor:
    slots, _, vocab = text.shape
    noise = torch.randn(slots, width, vocab, generator=generator, device=text.device)
    return text + (_NOISE * noise).to(text.dtype)
