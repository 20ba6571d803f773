"""Is it faster, and is it the same? One decoder against plain decoding, here and in transformers.

Knows how to measure fairly: same target, same dtype, same prompts, same parameters, turn by turn
on the same machine. Prints nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal

from eagle.bench.stock import stock_texts
from eagle.decoding import Decoder, Prompt, encode
from eagle.plugin import SamplingParams
from eagle.spec import NONE, ComponentSpec, DecoderSpec
from eagle.target import Target

__all__ = [
    "Against",
    "Comparison",
    "Round",
    "Run",
    "compare_decoder",
    "plain_decoder",
    "plain_spec",
    "stock_generate",
]

Side = Literal["plain", "hf"]

_WARM_UP = 4  # cycles: enough for every kernel and buffer of a cycle to have been used


@dataclass(frozen=True)
class Run:
    """One answer.

    Attributes:
        tokens: new tokens, in order.
        seconds: from the start of reading the prompt to the last token.
        cycles: verifications, or None for transformers.
    """

    tokens: tuple[int, ...]
    seconds: float
    cycles: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, the reading of the prompt included."""
        return len(self.tokens) / self.seconds


@dataclass(frozen=True)
class Round:
    """One prompt answered in each of the three ways, one right after another.

    Attributes:
        prompt: its index.
        spec: by the decoder that is measured.
        plain: without drafting, in the same runtime.
        hf: by transformers' own `generate`.
    """

    prompt: int
    spec: Run
    plain: Run
    hf: Run

    def speedup(self, side: Side) -> float:
        """Return how many times as fast the decoder was."""
        other: Run = getattr(self, side)
        return self.spec.tokens_per_second / other.tokens_per_second


@dataclass(frozen=True)
class Against:
    """The decoder against one way of decoding plainly.

    Attributes:
        tokens_per_second: of the other, over all rounds.
        speedup: of the decoder over it: the median of the rounds' ratios.
        lowest: the smallest ratio.
        highest: the largest ratio.
        same: rounds in which the tokens were identical, or None where chance decides them.
        identical: whether that were all rounds, or None.
    """

    tokens_per_second: float
    speedup: float
    lowest: float
    highest: float
    same: int | None
    identical: bool | None


@dataclass(frozen=True)
class Comparison:
    """What `compare_decoder` measured.

    Attributes:
        rounds: every measurement, in the order in which they were made.
        greedy: at temperature 0, where tokens can be compared one by one. At others each way
            draws by itself, and one answer says nothing of the distribution.
    """

    rounds: tuple[Round, ...]
    greedy: bool

    @property
    def tokens_per_second(self) -> float:
        """Of the decoder, over all rounds."""
        return _rate([r.spec for r in self.rounds])

    @property
    def tau(self) -> float:
        """Tokens committed per verification, over all rounds; 0 if there was none."""
        # The first token of an answer comes from the prompt's own pass.
        tokens = sum(len(r.spec.tokens) - 1 for r in self.rounds)
        cycles = sum(r.spec.cycles or 0 for r in self.rounds)
        return tokens / cycles if cycles else 0.0

    def against(self, side: Side) -> Against:
        """Return the decoder's figures against ``plain`` or ``hf``."""
        ratios = [r.speedup(side) for r in self.rounds]
        others: list[Run] = [getattr(r, side) for r in self.rounds]
        same = sum(
            r.spec.tokens == other.tokens for r, other in zip(self.rounds, others, strict=True)
        )
        return Against(
            tokens_per_second=_rate(others),
            speedup=statistics.median(ratios),
            lowest=min(ratios),
            highest=max(ratios),
            same=same if self.greedy else None,
            identical=same == len(ratios) if self.greedy else None,
        )


def _rate(runs: Sequence[Run]) -> float:
    return sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs)


def compare_decoder(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    repeats: int = 1,
    raw: bool = False,
    template: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Answer each prompt by a decoder, plainly in the same runtime, and by transformers.

    The three take turns on every prompt, so that a machine that slows down slows them all. Each
    answers the longest prompt in part beforehand, which allocates, compiles and is not counted.

    Args:
        decoder: what is measured; its target is used by all three.
        prompts: at least one.
        params: for all prompts.
        repeats: rounds for each prompt.
        raw: see `Decoder.generate`.
        template: what its `chat_template_kwargs` are.
        progress: called after each round with the rounds done and their total.
    """
    target = decoder.target
    plain = plain_decoder(decoder)
    texts = [
        encode(prompt, target.tokenizer, raw=raw, embeddings=target.embeddings, template=template)
        for prompt in prompts
    ]
    longest = max(texts, key=len)
    for either in (decoder, plain):
        for _ in islice(either.stream(longest, params), 1 + _WARM_UP):
            pass
    brief = params.model_copy(update={"max_new_tokens": min(_WARM_UP, params.max_new_tokens)})
    applied = decoder.defaults.fields
    stock_generate(target, longest, brief, applied)

    rounds: list[Round] = []
    total = len(texts) * repeats
    for number in range(total):
        index = number % len(texts)
        text = texts[index]
        spec = _run(decoder, text, params)
        # The capacity may have cut the answer short of max_new_tokens.
        room = min(params.max_new_tokens, decoder.capacity - len(text))
        limited = params.model_copy(update={"max_new_tokens": room})
        hf = stock_generate(target, text, limited, applied)
        rounds.append(Round(index, spec, _run(plain, text, limited), hf))
        progress(number + 1, total)
    return Comparison(tuple(rounds), greedy=params.temperature == 0)


def plain_decoder(decoder: Decoder) -> Decoder:
    """Return a decoder of the same target and runtime that drafts nothing."""
    return Decoder.from_spec(plain_spec(decoder.spec), target=decoder.target)


def plain_spec(spec: DecoderSpec) -> DecoderSpec:
    """Return a spec of the same target and runtime that drafts nothing."""
    nothing = ComponentSpec(name=NONE)
    usual = DecoderSpec(head=nothing, tree=nothing)
    return spec.model_copy(
        update={
            "name": "plain",
            "description": usual.description,
            "features": usual.features,
            "head": usual.head,
            "tree": usual.tree,
            "acceptance": usual.acceptance,
        }
    )


def _run(decoder: Decoder, text: Sequence[int], params: SamplingParams) -> Run:
    result = decoder.generate(text, params)
    return Run(result.tokens, result.stats.seconds, result.stats.cycles)


def stock_generate(
    target: Target,
    text: Sequence[int],
    params: SamplingParams,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Run:
    """Answer a prompt with transformers' own `generate`, its default cache, and nothing of ours.

    Args:
        target: whose model is used, with transformers' own attention.
        text: ids of the prompt.
        params: as for a decoder; the text ends at the same tokens and stop strings.
        defaults: see `stock_texts`.
    """
    (tokens,), seconds = stock_texts(target, [text], params, defaults=defaults)
    return Run(tokens, seconds)
