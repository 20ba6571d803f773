"""Sampling parameters, the distribution they define, and the seam that all randomness goes through.

It knows logits and numbers; it does not know where either comes from.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Protocol, TypeGuard

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from eagle.kernels import argmax, clocks, draw, race, race_at

__all__ = [
    "MOST_LOGPROBS",
    "Draws",
    "Sampling",
    "SamplingParams",
    "TargetProbs",
    "UniformDraws",
    "derived_seed",
    "fresh_seed",
    "fusible",
    "probabilities",
]

_FUSED = ("cuda",) if find_spec("triton") else ()  # devices for which there are kernels
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
    Without one, a request draws its own and its result says which. One seed for several prompts is
    the first one's own, and each of the others has one derived from it (`derived_seed`); where each
    prompt has parameters of its own, their seeds are taken as they are.

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
    probs = scores.softmax(-1)
    min_p = sampling.min_p.view(shape)
    probs = probs.where(probs >= min_p * probs.amax(-1, keepdim=True), 0)
    probs = probs / probs.sum(-1, keepdim=True)
    # Not a scatter of ones: adding 0 * top keeps NaN logits visible.
    greedy = torch.zeros_like(probs).scatter(-1, best, 1.0) + 0 * top
    return torch.where(temperature > 0, probs, greedy)


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


class Draws(Protocol):
    """The only source of randomness of tree builders and acceptance rules.

    In production it reads uniforms drawn from each request's own generator; in tests an oracle
    enumerates every outcome. A lane whose outcome does not matter asks with probability 0, so
    that an oracle need not branch on it.
    """

    def bernoulli(self, probs: Tensor) -> Tensor:
        """Return bool ``[B]``, each True with probability ``probs[b]`` (float ``[B]``)."""
        ...

    def categorical(self, weights: Tensor) -> Tensor:
        """Return int64 ``[B]`` or ``[B, W]``: indices drawn in proportion to the last dimension.

        Args:
            weights: float ``[B, V]`` or ``[B, W, V]``, not negative, not necessarily normalised.
                An index of weight zero is never drawn; where all are zero the result is 0.
        """
        ...

    def uniform(self, cuts: Callable[[], Tensor]) -> Tensor:
        """Return float64 ``[B]``, uniform in [0, 1).

        For what is no draw from a distribution at hand: one number that decides several things at
        once, say. Whatever follows may depend on it only through the interval between neighbouring
        cuts in which it falls. So an oracle can stand in for it, and the rule can be proved; where
        an interval is left out of the cuts, its outcomes have wrong probabilities and are found
        out. What depends on a number in another way (Gumbel noise on a whole vocabulary, with
        draft and target sharing it) cannot be enumerated.

        Args:
            cuts: returns float ``[B, K]`` in [0, 1], in any order. Only an oracle calls it.
        """
        ...

    def race(
        self, weights: Tensor, depth: int, count: int = 1, vocab: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the first tokens of a race at one position of every text, the winner first.

        The winner is a draw in proportion to the weights; the first few are draws without
        replacement. But each position has noise of its own, which is the same for whoever asks, in
        this cycle or in another: equal weights have the same winner, similar ones mostly. So a
        token that a text goes on with is to be drawn once at every position, from the target
        (`Law.SHARED_NOISE`); all else that is drawn there only guesses it.

        Args:
            weights: float ``[B, V]`` or ``[B, W, V]``, not negative, not necessarily normalised.
            depth: of the nodes whose children are drawn: the position is that behind the root
                for 0, and so on.
            count: how many, V at most. Those of weight zero come last.
            vocab: int64 ``[V]``, the target's ids of what the weights are of, where that is not
                its whole vocabulary (`Drafter.draft_vocab`).

        Returns:
            Places, int64 ``[..., count]``, and how fast these were, float64 of that shape: a
            weight divided by an exponential clock. For whoever draws from the target the places
            alone count.
        """
        ...


class UniformDraws:
    """Draws that read uniforms in [0, 1), ``[B, U]``, column after column.

    The order of the calls is fixed, so that a cycle can be captured once and replayed.
    """

    _draw = staticmethod(draw)

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms
        self.used = 0
        self._keys: Tensor | None = None
        self._positions: Tensor | None = None
        self._clocks: dict[tuple[int, int], Tensor] = {}

    def at(self, keys: Tensor, positions: Tensor) -> None:
        """Let races be those of some texts; without, all slots' are those of one.

        Args:
            keys: int64 ``[B]``, of the texts' noise.
            positions: int64 ``[B]``, of the roots.
        """
        self._keys, self._positions = keys, positions

    def read(self, count: int) -> Tensor:
        """Return the next uniforms, ``[B, count]``.

        Raises:
            IndexError: there are not as many.
        """
        start, self.used = self.used, self.used + count
        if self.used > self.uniforms.shape[1]:
            raise IndexError(
                f"a strategy drew {self.used} uniforms per slot in one cycle, "
                f"but only {self.uniforms.shape[1]} were declared"
            )
        return self.uniforms[:, start : self.used]

    def bernoulli(self, probs: Tensor) -> Tensor:
        """See `Draws.bernoulli`; strict, so that u = 0 never accepts probability zero."""
        return self.read(1)[:, 0] < probs

    def categorical(self, weights: Tensor) -> Tensor:
        """See `Draws.categorical` and `eagle.kernels.draw`."""
        width = weights.shape[1] if weights.dim() == 3 else 1
        return self._draw(weights, self.read(width).to(torch.float64).reshape(weights.shape[:-1]))

    def uniform(self, cuts: Callable[[], Tensor]) -> Tensor:
        """See `Draws.uniform`."""
        return self.read(1)[:, 0].to(torch.float64)

    def race(
        self, weights: Tensor, depth: int, count: int = 1, vocab: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Draws.race`, and `eagle.kernels.racing`."""
        size = weights.shape[-1]
        if weights.is_cuda:
            found: tuple[Tensor, Tensor] = race_at(weights, *self._texts(depth, size, vocab), count)
            return found
        own = self._clocks_at(depth, size, vocab)
        return race(weights, own[:, None] if weights.dim() == 3 else own, count)

    def _texts(self, depth: int, size: int, vocab: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the keys of the texts, their positions so deep in the tree, and token ids."""
        none = torch.zeros(len(self.uniforms), dtype=torch.int64, device=self.uniforms.device)
        keys = none if self._keys is None else self._keys
        positions = (none if self._positions is None else self._positions) + depth
        tokens = torch.arange(size, device=keys.device) if vocab is None else vocab
        return keys, positions, tokens

    def _clocks_at(self, depth: int, size: int, vocab: Tensor | None) -> Tensor:
        if vocab is None and (known := self._clocks.get((depth, size))) is not None:
            return known
        made = clocks(*self._texts(depth, size, vocab))
        # The target asks again for what was drafted by; what is traced stays in its own trace.
        if vocab is None and not torch.compiler.is_compiling():
            self._clocks[depth, size] = made
        return made


def fusible(draws: Draws, logits: Tensor, sampling: Sampling) -> TypeGuard[UniformDraws]:
    """Return whether kernels that read uniforms may stand for operators and `Draws`.

    This is the one place where that is decided. PyTorch's operators serve CPUs, draws of any other
    kind, an oracle's above all, and top-k and top-p, which need a sort. The kernels say what they
    say on the same uniforms, and are as few as PyTorch's are many; besides, PyTorch 2.11 fails to
    compile these.
    """
    return type(draws) is UniformDraws and logits.device.type in _FUSED and not sampling.filtered


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
