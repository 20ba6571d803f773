"""`audit`: what a rule that is not ours puts out, by enumeration; knows chains and no project.

A foreign rule takes its chance from PyTorch's random functions. They are answered here instead, one
number at a time. A uniform decides by comparison with something that only the rule knows, so the
points where the outcome changes are looked for by bisection; of `multinomial` every index is tried
with its probability; noise from `exponential_` is taken for a race over the vocabulary (argmax of
weight over noise), whose weights are found by the ratio of noise at which its winner changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Chain", "ForeignRule", "accepts_the_impossible", "audit", "output_distribution"]

Text = tuple[int, ...]
Weights = tuple[int, ...]

_BELOW_ONE = 1 - 2.0**-24
_PROBES = (0.0, 0.25, 0.5, 0.75, _BELOW_ONE)
_STEPS = 26  # of bisection; what a float32 uniform resolves
_FAR = 1e12  # noise that never wins a race, over noise that does


@dataclass(frozen=True)
class Chain:
    """A world of one chain: the distributions after any text depend on its length alone.

    Attributes:
        target: the target's weights, one tuple for each of D + 1 positions.
        draft: the draft's weights, one tuple for each of D positions.
        tokens: the drafted tokens; empty where they are still to be drawn.
    """

    target: tuple[Weights, ...]
    draft: tuple[Weights, ...]
    tokens: Text = ()

    @property
    def target_probs(self) -> Tensor:
        """The target's distributions, float32 ``[D + 1, V]``."""
        return _normalised(self.target)

    @property
    def draft_probs(self) -> Tensor:
        """The draft's distributions, float32 ``[D, V]``."""
        return _normalised(self.draft)


ForeignRule = Callable[[Chain], Sequence[int]]
"""Returns the tokens that a cycle puts out: those accepted of the chain's, and one more."""


def audit(
    rule: ForeignRule,
    *,
    vocab: int = 3,
    least: int = 2,
    depth: int = 2,
    weight: int = 2,
    worlds: int | Sequence[Chain] = 20,
    tolerance: float = 1e-5,
    fixed: bool = False,
) -> None:
    """Hold a foreign rule's output to the target's distribution, in small worlds first.

    Every drafted chain, and every outcome of the rule's own chance, is visited with its
    probability; what comes out, continued by the target to D + 1 tokens, must have the target's
    joint distribution. Worlds come by vocabulary, depth and sum of weights, so the one that is
    named is the smallest, of those looked at, in which the rule differs.

    Args:
        rule: the rule. Its chance must come from PyTorch, and from uniforms, `multinomial` or
            a race of exponentials. Intervals of a uniform that lie between two probes with the
            same outcome on both sides are not seen.
        vocab: the largest vocabulary.
        least: the smallest.
        depth: the longest chain.
        weight: the largest weight of a token.
        worlds: how many worlds of each vocabulary and depth; or these, in this order.
        tolerance: by how much a probability may differ; foreign rules compute in float32.
        fixed: whether the draft is its likeliest token, and no chance.

    Raises:
        AssertionError: some output has another probability than the target gives it, or the rule
            uses chance that is not understood here.
    """
    chains: Iterable[Chain] = (
        _worlds(range(least, vocab + 1), depth, weight, worlds)
        if isinstance(worlds, int)
        else worlds
    )
    for chain in chains:
        expected = _joint(chain.target)
        actual = dict.fromkeys(expected, 0.0)
        for text, chance in output_distribution(rule, chain, fixed=fixed).items():
            for end, more in _joint(chain.target[len(text) :]).items():
                # A text that cannot be is one more difference.
                actual[text + end] = actual.get(text + end, 0.0) + chance * more
        wrong = max(actual, key=lambda text: abs(actual[text] - expected.get(text, 0.0)))
        got, wanted = actual[wrong], expected.get(wrong, 0.0)
        # Written so that NaN fails.
        if not abs(got - wanted) <= tolerance:
            raise AssertionError(
                f"{getattr(rule, '__name__', type(rule).__name__)} is not lossless: with target "
                f"weights {list(chain.target)} and draft weights {list(chain.draft)} it puts out "
                f"{list(wrong)} with probability {got:.6g}, the target with {wanted:.6g}"
            )


def output_distribution(
    rule: ForeignRule, chain: Chain, *, fixed: bool = False
) -> dict[Text, float]:
    """Return the probability of every text that a rule puts out in one world.

    Args:
        rule: the rule.
        chain: the world, tokens not yet drawn.
        fixed: whether the draft is its likeliest token, and no chance.
    """
    found: dict[Text, float] = {}
    for tokens, chance in _joint(chain.draft, fixed=fixed).items():
        if not chance:
            continue
        drafted = Chain(chain.target, chain.draft, tokens)
        for text, own in _enumerate(rule, drafted, ()).items():
            found[text] = found.get(text, 0.0) + chance * own
    return found


def accepts_the_impossible(rule: ForeignRule) -> bool:
    """Return whether a drafted token that the target never says comes out at a uniform of 0.

    A float32 uniform is 0 once in 2 ** 24 draws, a float64 one in 2 ** 53.
    """
    chain = Chain(((0, 1), (1, 1)), ((1, 0),), (0,))
    return _run(rule, chain, (), (0.0, 0))[0] == 0


class _Ask(Exception):  # noqa: N818
    """The rule wants a number that its script does not have."""

    def __init__(
        self, kind: str, options: Sequence[Any] = (), chances: Sequence[float] = ()
    ) -> None:
        self.kind, self.options, self.chances = kind, options, chances


class _Answers(TorchDispatchMode):
    """Answers PyTorch's random functions from a script."""

    def __init__(self, script: tuple[Any, ...], rest: tuple[float, int] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting, self._rest = list(script), rest

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("rand", "rand_like"):
            given = {key: kwargs[key] for key in ("dtype", "device") if kwargs.get(key) is not None}
            like = torch.empty_like(args[0], **given) if name == "rand_like" else None
            return self._uniforms(torch.empty(args[0], **given) if like is None else like)
        if name == "uniform_":
            return self._uniforms(args[0])
        if name == "exponential_":
            vocab = args[0].shape[-1]
            race = self._next("race", range(vocab))
            noise = race if isinstance(race, tuple) else _noise(vocab, race)
            return args[0].copy_(torch.tensor(noise, dtype=args[0].dtype).expand_as(args[0]))
        if name == "multinomial":
            return self._index(args[0])
        raise AssertionError(f"the rule draws by torch.{name}, which is not understood here")

    def _next(self, kind: str, options: Sequence[Any] = (), chances: Sequence[float] = ()) -> Any:
        if self._waiting:
            return self._waiting.pop(0)
        if self._rest is None:
            raise _Ask(kind, options, chances)
        uniform, wanted = self._rest
        if kind == "uniform":
            return uniform
        able = [option for option in options if kind == "race" or chances[option] > 0]
        return min(able, key=lambda option: abs(option - wanted))

    def _uniforms(self, out: Tensor) -> Tensor:
        flat = [self._next("uniform") for _ in range(out.numel())]
        return out.copy_(torch.tensor(flat, dtype=torch.float64).reshape(out.shape))

    def _index(self, weights: Tensor) -> Tensor:
        rows = weights.reshape(-1, weights.shape[-1])
        drawn = []
        for row in rows.double().unbind(0):
            chances = (row / row.sum()).tolist()
            if any(math.isnan(chance) for chance in chances):
                raise AssertionError("the rule draws from weights that sum to 0 or are NaN")
            drawn.append(self._next("index", range(len(chances)), chances))
        return torch.tensor(drawn).reshape(*weights.shape[:-1], 1)


def _run(
    rule: ForeignRule,
    chain: Chain,
    script: tuple[Any, ...],
    rest: tuple[float, int] | None = None,
) -> Text:
    """Return what comes out by a script; what is asked after it is answered by *rest*, if given."""
    with _Answers(script, rest):
        return tuple(int(token) for token in rule(chain))


def _enumerate(rule: ForeignRule, chain: Chain, script: tuple[Any, ...]) -> dict[Text, float]:
    """Return the distribution of a rule's output, given its first numbers."""
    try:
        return {_run(rule, chain, script): 1.0}
    except _Ask as caught:
        ask = caught
    if ask.kind == "uniform":
        ends = [0.0, *_cuts(rule, chain, script), 1.0]
        branches: list[tuple[Any, float]] = [
            ((low + high) / 2, high - low) for low, high in pairwise(ends)
        ]
    elif ask.kind == "index":
        branches = [pair for pair in zip(ask.options, ask.chances, strict=True) if pair[1] > 0]
    else:
        branches = list(_race(rule, chain, script, len(ask.options)))
    found: dict[Text, float] = {}
    for answer, chance in branches:
        for text, own in _enumerate(rule, chain, (*script, answer)).items():
            found[text] = found.get(text, 0.0) + chance * own
    return found


def _cuts(rule: ForeignRule, chain: Chain, script: tuple[Any, ...]) -> list[float]:
    """Return where the outcome changes as a function of the next uniform."""
    rests = list(product((_PROBES[0], _PROBES[-1]), range(len(chain.target[0]))))

    def outcome(uniform: float, rest: tuple[float, int]) -> Text:
        return _run(rule, chain, (*script, uniform), rest)

    found = [[outcome(at, rest) for rest in rests] for at in _PROBES]
    cuts = []
    for place, (low, high) in enumerate(pairwise(_PROBES)):
        before, after = found[place], found[place + 1]
        telling = [n for n in range(len(rests)) if before[n] != after[n]]
        if not telling:
            continue
        rest, first = rests[telling[0]], before[telling[0]]
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if outcome(middle, rest) == first else (low, middle)
        cuts.append((low + high) / 2)
    return cuts


def _race(
    rule: ForeignRule, chain: Chain, script: tuple[Any, ...], vocab: int
) -> list[tuple[int, float]]:
    """Return who can win the next race, with what probability."""

    def last(noise: tuple[float, ...] | int) -> int:
        return _run(rule, chain, (*script, noise), (_PROBES[-1], 0))[-1]

    able = [token for token in range(vocab) if last(token) == token]
    if len({last(token) for token in range(vocab)}) < 2 or len(able) < 2:
        return [(able[0] if able else 0, 1.0)]
    weights = [1.0]
    for token in able[1:]:
        low, high = -40.0, 40.0  # of the logarithm of its weight over that of the first
        for _ in range(2 * _STEPS):
            middle = (low + high) / 2
            noise = [_FAR] * vocab
            noise[able[0]], noise[token] = 1.0, math.exp(middle)
            low, high = (middle, high) if last(tuple(noise)) == token else (low, middle)
        weights.append(math.exp((low + high) / 2))
    return [(token, own / sum(weights)) for token, own in zip(able, weights, strict=True)]


def _noise(vocab: int, winner: int) -> list[float]:
    return [1.0 if token == winner else _FAR for token in range(vocab)]


def _normalised(rows: Sequence[Weights]) -> Tensor:
    weights = torch.tensor(rows, dtype=torch.float32)
    return weights / weights.sum(-1, keepdim=True)


def _joint(rows: Sequence[Weights], *, fixed: bool = False) -> dict[Text, float]:
    """Return the probability of every text whose tokens have the weights of its positions."""
    joint: dict[Text, float] = {(): 1.0}
    for row in rows:
        own = [float(t == row.index(max(row))) for t in range(len(row))] if fixed else row
        joint = {
            (*text, token): chance * weight / sum(own)
            for text, chance in joint.items()
            for token, weight in enumerate(own)
        }
    return joint


def _worlds(vocabs: range, depth: int, weight: int, count: int) -> Iterator[Chain]:
    """Yield small worlds, by vocabulary, depth and sum of weights."""
    for size, levels in product(vocabs, range(1, depth + 1)):
        rows = [row for row in product(range(weight + 1), repeat=size) if any(row)]
        yield from _spread(sorted(rows, key=sum), levels, count)


def _spread(rows: list[Weights], levels: int, count: int) -> Iterator[Chain]:
    """Yield so many worlds of one vocabulary and depth, every so manieth of all of them."""
    number = len(rows) ** (2 * levels + 1)
    places = sorted({round(n * (number - 1) / max(count - 1, 1)) for n in range(count)})
    chains = []
    for place in places:
        chosen = []
        for _ in range(2 * levels + 1):
            place, own = divmod(place, len(rows))
            chosen.append(rows[own])
        chains.append(Chain(tuple(chosen[: levels + 1]), tuple(chosen[levels + 1 :])))
    yield from sorted(chains, key=lambda c: (sum(map(sum, (*c.target, *c.draft))), c.target))
