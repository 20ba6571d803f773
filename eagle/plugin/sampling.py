"""Sampling parameters, and the distribution that they and logits define; nothing is drawn here."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from eagle.kernels import argmax

__all__ = [
    "MOST_LOGPROBS",
    "Sampling",
    "SamplingParams",
    "TargetProbs",
    "derived_seed",
    "fresh_seed",
    "probabilities",
]

MOST_LOGPROBS = 20
"""Likeliest tokens whose log probabilities can be asked for."""
_HOTTEST = 1e30  # temperature; float32 holds it, and what it leaves of scores is nothing


def _pairs(given: object) -> object:
    """Return a mapping as pairs, which a frozen model can be hashed by."""
    return tuple(given.items()) if isinstance(given, Mapping) else given


class SamplingParams(BaseModel):
    """How one request is answered.

    Temperature, top-k, top-p and min-p are applied in this order, as `transformers` does, and
    together define the target distribution that the decoder keeps.

    The default is greedy, and so many tokens: what a model's ``generation_config`` recommends for
    sampling (``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``max_new_tokens`` and the like)
    is not taken over.

    All chance of a request comes from its own `seed`, so it says in a batch what it says alone.
    Without one, a request draws its own and its result says which; a tree may follow the batch
    then, by which its text is as likely as by any other, but another one. One seed for several
    prompts is the first one's own, and each of the others has one derived from it (`derived_seed`);
    where each prompt has parameters of its own, their seeds are taken as they are.

    `frequency_penalty` and `presence_penalty` are OpenAI's: from a token's score they take so much
    for each time that it stands in the answer so far, and so much if it stands there at all; the
    prompt does not count. `logit_bias`, a mapping of token ids, is added to scores. All three come
    behind logits processors and before temperature, and such cycles run as theirs do.

    With `logprobs`, every token comes with the log-softmax of the target's own logits, before
    temperature, filters and processors, and with those of so many likeliest tokens in its place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0, le=_HOTTEST, allow_inf_nan=False)] = 0.0
    top_k: Annotated[int, Field(ge=0, lt=2**63)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]], ...],
        BeforeValidator(_pairs),
    ] = ()


def fresh_seed() -> int:
    """Return a seed that the operating system draws."""
    return secrets.randbits(63)


def derived_seed(seed: int, index: int) -> int:
    """Return the seed of one of several requests that were given one seed.

    It is the seed itself at index 0, and otherwise the first 63 bits of the SHA-256 digest of
    ``"{seed}/{index}"``: not a consecutive number, whose generator starts out alike.

    Args:
        seed: the seed that was given.
        index: of the request, from 0.
    """
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of B slots, on the device.

    Attributes:
        temperature: float32 ``[B]``; 0 means greedy.
        top_k: int64 ``[B]``; 0 means off.
        top_p: float32 ``[B]``; 1 means off.
        min_p: float32 ``[B]``; 0 means off.
        greedy: every slot is greedy (known on the host, so that a cycle may skip the sampling).
        filtered: some slot uses top-k or top-p, which need a sort (known on the host).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    greedy: bool
    filtered: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> Sampling:
        """Collect the parameters of one request per slot."""

        def sent(values: list[float] | list[int]) -> Tensor:
            # Not torch.tensor(..., device=...), which waits for what the device has to do before.
            return torch.tensor(values).to(device, non_blocking=True)

        return cls(
            temperature=sent([p.temperature for p in params]),
            top_k=sent([p.top_k for p in params]),
            top_p=sent([p.top_p for p in params]),
            min_p=sent([p.min_p for p in params]),
            greedy=all(p.temperature == 0 for p in params),
            filtered=any(p.temperature > 0 and (p.top_k > 0 or p.top_p < 1) for p in params),
        )

    def first(self, count: int) -> Sampling:
        """Return the parameters of the first slots, as views of these tensors."""
        return replace(
            self,
            temperature=self.temperature[:count],
            top_k=self.top_k[:count],
            top_p=self.top_p[:count],
            min_p=self.min_p[:count],
        )

    def become(self, params: Sequence[SamplingParams]) -> Sampling:
        """Take on the parameters of other requests, as many, in the same tensors."""
        return self.take(Sampling.of(params, "cpu"))

    def take(self, new: Sampling) -> Sampling:
        """Take on the values of another, of as many slots, in the same tensors."""
        for name in ("temperature", "top_k", "top_p", "min_p"):
            getattr(self, name).copy_(getattr(new, name), non_blocking=True)
        return replace(self, greedy=new.greedy, filtered=new.filtered)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution that the sampling parameters make of logits.

    Args:
        logits: ``[B, V]`` or ``[B, W, V]``.
        sampling: parameters of the B slots.

    Returns:
        Probabilities of the same shape, float64 for float64 logits and float32 otherwise. At
        temperature 0, all mass is on the first largest logit. NaN logits give NaN throughout.
    """
    shape = (-1,) + (1,) * (logits.dim() - 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    best = argmax(logits)[..., None]
    # Subtracting the maximum first keeps a tiny temperature from overflowing to inf - inf.
    top = logits.gather(-1, best)
    temperature = sampling.temperature.view(shape)
    scores = (logits - top) / torch.where(temperature > 0, temperature, 1)
    if sampling.filtered:
        scores = _filter(scores, sampling.top_k.view(shape), sampling.top_p.view(shape))
    probs = _softmax(scores)
    min_p = sampling.min_p.view(shape)
    probs = probs.where(probs >= min_p * probs.amax(-1, keepdim=True), 0)
    probs = probs / probs.sum(-1, keepdim=True)
    # Not a scatter of ones: adding 0 * top keeps NaN logits visible.
    greedy = torch.zeros_like(probs).scatter(-1, best, 1.0) + 0 * top
    return torch.where(temperature > 0, probs, greedy)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax of scores whose maximum is 0, or which are NaN."""
    if not torch.compiler.is_compiling():
        return scores.softmax(-1)
    # PyTorch's compiler (2.11, 2.13) rewrites the softmax of a quotient by one number a row, and
    # fails at its own reduction of that number: "assert rnumel1 == 1 and rnumel2 != 1".
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def _filter(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set the scores outside top-k, then outside top-p of what is left, to -inf."""
    if torch.compiler.is_compiling():
        kept: Tensor = _filter_whole(scores, top_k, top_p)
        return kept
    return _filter_parts(scores, top_k, top_p)


def _filter_parts(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    kth = ordered.gather(
        -1, (top_k - 1).clamp(0, scores.shape[-1] - 1).expand(order.shape)[..., :1]
    )
    ordered = ordered.masked_fill((ordered < kth) & (top_k > 0), -torch.inf)
    probs = ordered.softmax(-1)
    # A token stays while the mass of the more likely ones is under top_p: the first always does.
    before = probs.cumsum(-1) - probs
    outside = (before >= top_p) & (before > 0) & (top_p < 1)
    ordered = ordered.masked_fill(outside, -torch.inf)
    return torch.empty_like(scores).scatter(-1, order, ordered)


@torch.library.custom_op("eagle::filter", mutates_args=())
def _filter_whole(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    # One operator when compiled: PyTorch 2.11 fails to compile the cumulative sum of a vocabulary
    # beside the reductions around it.
    return _filter_parts(scores, top_k, top_p)


@_filter_whole.register_fake
def _(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class TargetProbs:
    """The target's distributions at the nodes of a tree, computed only where a rule looks.

    Attributes:
        logits: ``[B, N, V]``, the target's logits at every node.
        sampling: the slots' parameters.
    """

    logits: Tensor
    sampling: Sampling

    @property
    def greedy(self) -> bool:
        """Every slot is greedy, known on the host."""
        return self.sampling.greedy

    @property
    def argmax(self) -> Tensor:
        """The most likely token at every node, int64 ``[B, N]``."""
        return argmax(self.logits)

    def at(self, nodes: Tensor) -> Tensor:
        """Return ``target_probs`` ``[B, V]`` at one node per slot, int64 ``[B]``."""
        index = nodes[:, None, None].expand(-1, 1, self.logits.shape[2])
        return probabilities(self.logits.gather(1, index)[:, 0], self.sampling)
