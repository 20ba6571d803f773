"""Does a decoder say what its target would have said? Measured, on any target, head and spec.

Knows how to ask a decoder and what to hold its answers against. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from eagle.bench.compare import plain_decoder
from eagle.bench.contexts import draws_of
from eagle.bench.identity import Agreement, Choice, agreement, evidence, strays
from eagle.bench.passes import stock_answers
from eagle.bench.significance import Significance, check_alpha, examine
from eagle.decoding import Decoder, Prompt, Result, encode
from eagle.errors import RequestError
from eagle.plugin import SamplingParams

__all__ = ["PROMPTS", "Identity", "Progress", "Sampled", "verify_greedy", "verify_sampled"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

PROMPTS = (
    "Hi! I have an hour before my train leaves. What could I do near a station?",
    "Explain to a ten-year-old why the moon changes its shape.",
    "Write a Python function that returns the second largest number of a list.",
    "A baker sells 14 loaves in the morning and twice as many in the afternoon, at 3 euros a "
    "loaf. How much money does she take? Show each step.",
    "List five rules for writing a clear email.",
    "Translate into French: The library is closed on Sundays, but the garden is open.",
    "Write the first paragraph of a story about a lighthouse keeper who finds a letter.",
    "What is the difference between a virus and a bacterium, and why does it matter for treatment?",
)
"""What is asked where no prompts are given: talk, explanation, code, sums, lists and prose."""

_ROWS = 64  # texts in one scoring pass, at least


@dataclass(frozen=True)
class Identity:
    """What `verify_greedy` found.

    Attributes:
        tokens: that the decoder gave, over all prompts.
        tau: tokens committed per verification; 0 if there was none.
        plain: against decoding without drafting, in the same runtime.
        hf: against transformers' own `generate`.
        strays: the decoder's tokens that are not the best by the target's own full pass.
        noise: median over all positions, see `eagle.bench.identity.evidence`.
    """

    tokens: int
    tau: float
    plain: Agreement
    hf: Agreement
    strays: tuple[Choice, ...]
    noise: float

    @property
    def prompts(self) -> int:
        """How many were answered."""
        return self.plain.prompts

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every difference that was found."""
        return self.plain.divergences + self.hf.divergences + self.strays

    @property
    def mistakes(self) -> tuple[Choice, ...]:
        """The differences that are no ties."""
        return tuple(choice for choice in self.choices if not choice.tie)

    @property
    def identical(self) -> bool:
        """Every answer is that of both references."""
        return not self.plain.divergences and not self.hf.divergences

    @property
    def holds(self) -> bool:
        """Every difference is a tie."""
        return not self.mistakes


def verify_greedy(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    progress: Progress = lambda what, done, total: None,
) -> Identity:
    """Answer prompts at temperature 0 and hold every token against the target's own choice.

    The answers are compared with plain decoding in the same runtime and with transformers'
    `generate`, all in batches of the decoder's ``runtime.max_batch``. Then the target reads the
    decoder's answers by passes of its own: every token that is not its best there, and every
    first difference from a reference, is a tie or a mistake.

    Args:
        decoder: what is verified.
        prompts: at least one.
        max_new_tokens: longest answer; it also ends where the decoder's capacity does.
        progress: see `Progress`.

    Raises:
        RequestError: a prompt is not valid, or leaves no room for an answer.
    """
    target, batch = decoder.target, decoder.max_batch
    texts = _encoded(decoder, prompts, 1)
    limits = [min(max_new_tokens, decoder.capacity - len(text)) for text in texts]
    params = [SamplingParams(max_new_tokens=limit) for limit in limits]
    count = len(texts)

    results = _answer(decoder, texts, params, _ticker(progress, "decoding", count))
    answers = [result.tokens for result in results]
    tick = _ticker(progress, "decoding plainly", count)
    plain = [result.tokens for result in _answer(plain_decoder(decoder), texts, params, tick)]
    tick = _ticker(progress, "decoding by transformers", count)
    hf = stock_answers(target, texts, limits, batch, tick)

    judged = evidence(
        target,
        texts,
        answers,
        list(zip(plain, hf, strict=True)),
        width=decoder.resolved.tree.shape.nodes,
        batch=batch,
        progress=_ticker(progress, "reading the answers", count),
    )
    accepted = [size for result in results for size in result.stats.accepted_per_cycle]
    return Identity(
        tokens=sum(map(len, answers)),
        tau=sum(accepted) / len(accepted) if accepted else 0.0,
        plain=agreement(answers, plain, judged, target.dtype),
        hf=agreement(answers, hf, judged, target.dtype),
        strays=strays(answers, judged, target.dtype),
        noise=float(torch.cat([own.noise for own in judged]).median()),
    )


@dataclass(frozen=True)
class Sampled:
    """What `verify_sampled` found.

    Attributes:
        prompts: how many were answered.
        samples: answers to each.
        tokens: of each answer that were tested, from its first.
        tau: tokens committed per verification; 0 if there was none.
        test: the outcome.
    """

    prompts: int
    samples: int
    tokens: int
    tau: float
    test: Significance

    @property
    def holds(self) -> bool:
        """The tokens are consistent with the target's distribution."""
        return self.test.holds


def verify_sampled(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    samples: int,
    tokens: int,
    alpha: float,
    seed: int,
    progress: Progress = lambda what, done, total: None,
) -> Sampled:
    """Sample the first tokens of many answers and test them against the target's distribution.

    Plain sampling need not be sampled: given the text before it, it draws each token from the
    softmax of the target's logits, which the target's own passes give. So the decoder's tokens
    are held against the distribution itself, which needs half as many of them.

    Args:
        decoder: what is verified.
        prompts: at least one.
        temperature: above 0.
        samples: answers to each prompt.
        tokens: how many of each answer, from its first; an end-of-text token does not end it.
        alpha: size of the test.
        seed: of the samples and of the simulations.
        progress: see `Progress`.

    Raises:
        RequestError: alpha is out of bounds, or a prompt leaves no room for so many tokens.
    """
    check_alpha(alpha)
    texts = _encoded(decoder, prompts, tokens)
    # Not consecutive numbers, whose generators start out alike.
    generator = torch.Generator().manual_seed(seed)
    count = len(texts) * samples
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    params = [
        SamplingParams(max_new_tokens=tokens, temperature=temperature, seed=each, ignore_eos=True)
        for each in seeds
    ]
    owners = [index for index in range(len(texts)) for _ in range(samples)]
    tick = _ticker(progress, "sampling", count)
    results = _answer(decoder, [texts[index] for index in owners], params, tick)
    draws = draws_of(
        decoder.target,
        texts,
        owners,
        [result.tokens for result in results],
        temperature,
        max(_ROWS, decoder.max_batch),
        _ticker(progress, "scoring", count),
    )
    accepted = [size for result in results for size in result.stats.accepted_per_cycle]
    return Sampled(
        prompts=len(texts),
        samples=samples,
        tokens=tokens,
        tau=sum(accepted) / len(accepted) if accepted else 0.0,
        test=examine(
            draws,
            alpha=alpha,
            seed=seed,
            progress=lambda done, total: progress("simulating", done, total),
        ),
    )


def _encoded(decoder: Decoder, prompts: Sequence[Prompt], room: int) -> list[list[int]]:
    """Return the prompts' ids, each of which leaves room for so many tokens."""
    target = decoder.target
    if decoder.defaults.fields:
        raise RequestError(
            "tokens are held against the target's own logits, which its generation_config changes "
            f"({', '.join(decoder.defaults.fields)}); verify with target.generation_config=ignore"
        )
    texts = []
    for index, prompt in enumerate(prompts):
        ids = encode(prompt, target.tokenizer, raw=False, embeddings=target.embeddings)
        if decoder.capacity - len(ids) < room:
            raise RequestError(
                f"prompt {index + 1} has {len(ids)} tokens, but this decoder holds "
                f"{decoder.capacity} with the answer (runtime.max_length, bounded by the target), "
                f"and {room} should fit; shorten the prompt"
            )
        texts.append(ids)
    return texts


def _answer(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    tick: Callable[[int], None],
) -> list[Result]:
    """Answer all prompts, in order, counting those that are done."""
    results: dict[int, Result] = {}
    for event in decoder.stream(texts, params):
        if event.result is not None:
            results[event.index] = event.result
            tick(1)
    return [results[index] for index in range(len(texts))]


def _ticker(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Return a function that adds to what is done."""
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        progress(what, done, total)

    progress(what, 0, total)
    return tick
