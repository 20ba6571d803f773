"""Whether the kernels of sampling say here what PyTorch's operators say, asked before their use.

Tests hold them together in Triton's interpreter and on the GPUs that there were. A user's GPU,
driver or compiler may be another, and a kernel that is wrong there would change what is said.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eagle.cycle import Cycle, with_target_ids
from eagle.kernels import draw_by_operators
from eagle.plugin import Sampling, SamplingParams, TargetProbs, UniformDraws, fusible, probabilities

__all__ = ["OperatorDraws", "disagreement"]

_CASES = 8
_PARAMS = (SamplingParams(temperature=0.7), SamplingParams(temperature=1.2, min_p=0.02))
_SPREAD, _NOISE = 3.0, 0.7  # of logits; what draft and target differ by, so that much is accepted
_LIKELY, _UNLIKELY = 256, -60.0  # tokens that have mass, and the logit of all others


class OperatorDraws(UniformDraws):
    """Draws that no kernel stands for: all goes through PyTorch's operators."""

    _draw = staticmethod(draw_by_operators)


class _Noise:
    """A drafter whose logits are those of a made-up text, with noise, of the tokens it drafts."""

    def __init__(self, text: Tensor, sampling: Sampling, vocab: Tensor | None, seed: int) -> None:
        self.root = torch.zeros(text.shape[0], dtype=torch.int64, device=text.device)
        self.sampling, self.draft_vocab = sampling, vocab
        self._text = text if vocab is None else text[..., vocab]
        self._generator = torch.Generator(text.device).manual_seed(seed)

    def begin(self) -> Tensor:
        return _noisy(self._text, 1, self._generator)

    def levels(self) -> None:
        return None

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        return _noisy(self._text, tokens.shape[1], self._generator)


def disagreement(cycle: Cycle) -> str | None:
    """Draft and accept made-up trees in both ways, on the same uniforms, and compare.

    In float32 two right ways may differ where a uniform falls within rounding of a boundary. A few
    hundred tokens, scattered over the vocabulary, have all the mass, so that these fixed cases
    meet that with a probability of about 1e-3 altogether; then the operators are used, which
    are slower and say the same. Greedy slots beside sampled ones are left to the tests: equal
    logits, of which either may come first, are too many in bfloat16.

    Args:
        cycle: whose acceptance rule is tried, with the tree builder that it uses at the time.

    Returns:
        None where both agree, or where there are no kernels; else what is different.
    """
    target = cycle.target
    sampling = Sampling.of(_PARAMS, target.device)
    for seed in range(_CASES):
        generator = torch.Generator(target.device).manual_seed(seed)

        def random(*size: int, source: torch.Generator = generator) -> Tensor:
            dtype, device = torch.float64, target.device
            return torch.rand(*size, generator=source, dtype=dtype, device=device)

        size = (len(_PARAMS), 1, target.info.vocab_size)
        likely = random(*size) < _LIKELY / size[-1]
        text = _SPREAD * torch.randn(size, generator=generator, device=target.device)
        text = text.where(likely, _UNLIKELY).to(target.dtype)
        logits = _noisy(text, cycle.shape.nodes, generator)
        uniforms = random(len(_PARAMS), 1 + cycle.draws_per_cycle)
        if not fusible(UniformDraws(uniforms), logits, sampling):
            return None
        try:
            both = (
                _outcome(cycle, text, logits, sampling, kind(uniforms), _CASES + seed)
                for kind in (OperatorDraws, UniformDraws)
            )
            for (name, expected), (_, found) in zip(*both, strict=True):
                if not _same(expected, found):
                    return f"{name} than with PyTorch's operators, case {seed}"
        except Exception as error:  # also of a compiler that is not there
            return f"{type(error).__name__}: {error}"
    return None


def _outcome(
    cycle: Cycle,
    text: Tensor,
    logits: Tensor,
    sampling: Sampling,
    draws: UniformDraws,
    seed: int,
) -> Iterator[tuple[str, Tensor | None]]:
    yield "another first token", draws.categorical(probabilities(text[:, 0], sampling))
    drafter = _Noise(text, sampling, cycle.draft_vocab, seed)
    tree = with_target_ids(cycle.tree.build(drafter, draws), cycle.draft_vocab)
    yield "other candidates", tree.tokens
    yield "another tree", tree.parents
    yield "another draft distribution", tree.draft_probs
    choice = cycle.acceptance.accept(tree, TargetProbs(logits, sampling), cycle.shape, draws)
    yield "another path", choice.path
    yield "another count of accepted tokens", choice.count
    yield "another bonus token", choice.bonus


def _same(expected: Tensor | None, found: Tensor | None) -> bool:
    if expected is None or found is None:
        return expected is found
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-6, equal_nan=True)


def _noisy(text: Tensor, width: int, generator: torch.Generator) -> Tensor:
    slots, _, vocab = text.shape
    noise = torch.randn(slots, width, vocab, generator=generator, device=text.device)
    return text + (_NOISE * noise).to(text.dtype)
