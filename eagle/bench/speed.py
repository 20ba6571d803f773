"""How fast are some decoders, and what bounds them? Measured side by side in one process.

Knows decoders and the baselines that they are held against; prints nothing. Whoever is measured
takes its turn on every prompt, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from eagle.bench.compare import plain_decoder
from eagle.bench.floors import peak_memory, read_bandwidth, reset_peak_memory, weight_bytes
from eagle.bench.outcome import Row, Speed, Trial
from eagle.bench.stock import stock_texts
from eagle.bench.timing import phase_times
from eagle.decoding import Decoder, Prompt, encode
from eagle.errors import RequestError, nearest
from eagle.plugin import SamplingParams
from eagle.target import Target

__all__ = ["BASELINES", "brief", "check_baselines", "limited", "measure_speed"]

BASELINES = ("plain", "hf", "hf-assisted-ngram")
"""What decoders can be held against: the same runtime without drafting, transformers' `generate`,
and that with prompt lookup."""

_LOOKUP = 10  # candidates a step, the number in transformers' own example
_BRIEF = 8  # tokens of a short answer beforehand

Texts = Sequence[Sequence[int]]


class _Contender(Protocol):
    """Whoever answers prompts and is timed."""

    def warm_up(self, groups: Sequence[Texts], params: SamplingParams, capacity: int) -> None:
        """Answer without being timed, so that all is allocated, compiled and captured."""

    def answer(self, prompts: tuple[int, ...], texts: Texts, params: SamplingParams) -> Trial:
        """Answer some prompts at once, with the clock running."""


class _Ours:
    """A decoder of this library."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def warm_up(self, groups: Sequence[Texts], params: SamplingParams, capacity: int) -> None:
        # Whole answers to the shortest and the longest prompts go through every length of text
        # that there will be, and a short one to each prompt through every length of prompt.
        for texts in (groups[0], groups[-1]):
            self.decoder.generate(texts, limited(params, texts, capacity))
        short = brief(params)
        for texts in groups:
            self.decoder.generate(texts, limited(short, texts, capacity))

    def answer(self, prompts: tuple[int, ...], texts: Texts, params: SamplingParams) -> Trial:
        device, loop = self.decoder.target.device, self.decoder.loop
        self.decoder.forget()  # a prompt that was answered before is read all the same
        reset_peak_memory(device)
        cycles, reading, started = loop.cycles, loop.tally.reading, time.perf_counter()
        results = self.decoder.generate(texts, params)
        seconds = time.perf_counter() - started
        return Trial(
            prompts=prompts,
            answers=tuple(result.tokens for result in results),
            seconds=seconds,
            reading=loop.tally.reading - reading,
            cycles=loop.cycles - cycles,
            verifications=sum(result.stats.cycles for result in results),
            memory=peak_memory(device),
        )


class _Stock:
    """transformers' own `generate`."""

    def __init__(self, target: Target, lookup: int, defaults: Mapping[str, Any]) -> None:
        self.target, self.lookup, self.defaults = target, lookup, defaults

    def warm_up(self, groups: Sequence[Texts], params: SamplingParams, capacity: int) -> None:
        self._texts(groups[-1], limited(brief(params), groups[-1], capacity))

    def answer(self, prompts: tuple[int, ...], texts: Texts, params: SamplingParams) -> Trial:
        reset_peak_memory(self.target.device)
        answers, seconds = self._texts(texts, params)
        memory = peak_memory(self.target.device)
        return Trial(prompts=prompts, answers=tuple(answers), seconds=seconds, memory=memory)

    def _texts(self, texts: Texts, params: SamplingParams) -> tuple[list[tuple[int, ...]], float]:
        return stock_texts(self.target, texts, params, lookup=self.lookup, defaults=self.defaults)


def check_baselines(baselines: Sequence[str], batch: int, specs: Collection[str] = ()) -> None:
    """Refuse baselines that there are not, and those that are measured already.

    Args:
        baselines: their names.
        batch: prompts answered at once.
        specs: names of the specs that are held against them.

    Raises:
        RequestError: one is unknown, named twice, cannot answer several prompts at once, or has
            a spec's name.
    """
    for name in baselines:
        if name not in BASELINES:
            raise RequestError(
                f"--baseline: {name!r} is none; there is {', '.join(BASELINES)}."
                f"{nearest(name, BASELINES)}"
            )
    if len(set(baselines)) < len(baselines):
        raise RequestError("--baseline: each is measured once; one is named twice")
    if batch > 1 and "hf-assisted-ngram" in baselines:
        raise RequestError(
            "--baseline hf-assisted-ngram answers one prompt at a time in transformers; leave it "
            "out, or leave --batch at 1"
        )
    if both := set(specs) & set(baselines):
        raise RequestError(
            f"the spec {both.pop()!r} is measured as a baseline already; leave out one of the two"
        )


def measure_speed(
    decoders: Mapping[str, Decoder],
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    baselines: Sequence[str] = ("plain",),
    repeats: int = 1,
    batch: int = 1,
    raw: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Speed:
    """Answer prompts with every decoder and every baseline, and time them.

    Args:
        decoders: by name, at least one; all of one target.
        prompts: at least one.
        params: for all prompts.
        baselines: names of `BASELINES`. The plain decoder has the first decoder's runtime.
        repeats: rounds over the prompts.
        batch: prompts answered at once. Those left over after the last whole batch are left out:
            other numbers of slots would have to be allocated and captured for them.
        raw: see `Decoder.generate`.
        progress: called with what is done, how much of it, and its total.

    Raises:
        RequestError: see `check_baselines`; or a prompt is not valid.
    """
    check_baselines(baselines, batch, decoders)
    first = next(iter(decoders.values()))
    target, ours = first.target, dict(decoders)
    if "plain" in baselines:
        ours["plain"] = plain_decoder(first)
    contenders: dict[str, _Contender] = {name: _Ours(decoder) for name, decoder in ours.items()}
    for name in baselines:
        if name != "plain":
            lookup = _LOOKUP if name == "hf-assisted-ngram" else 0
            contenders[name] = _Stock(target, lookup, first.defaults.fields)

    texts = [encode(p, target.tokenizer, raw=raw, embeddings=target.embeddings) for p in prompts]
    whole = range(0, len(texts) - batch + 1, batch)
    groups = [tuple(range(start, start + batch)) for start in whole] or [tuple(range(len(texts)))]
    capacity = min(decoder.capacity for decoder in ours.values())
    grouped = [[texts[index] for index in place] for place in groups]
    grouped.sort(key=lambda some: max(map(len, some)))
    for number, (name, contender) in enumerate(contenders.items()):
        progress(f"warming up {name}", number, len(contenders))
        contender.warm_up(grouped, params, capacity)

    trials: dict[str, list[Trial]] = {name: [] for name in contenders}
    total = len(groups) * repeats * len(contenders)
    for place in [*groups] * repeats:
        some = [texts[index] for index in place]
        own = limited(params, some, capacity)
        for name, contender in contenders.items():
            progress(f"timing {name}", sum(map(len, trials.values())), total)
            trials[name].append(contender.answer(place, some, own))

    rows = []
    bandwidth = read_bandwidth(target.device)
    for name, given in trials.items():
        decoder = ours.get(name)
        phases: dict[str, float] = {}
        nodes = None
        if decoder is not None:
            progress(f"timing the phases of {name}", total, total)
            most = max(given, key=lambda trial: trial.cycles or 0)
            some = [texts[index] for index in most.prompts]
            phases = phase_times(decoder, some, limited(params, some, capacity))
            nodes = decoder.resolved.tree.shape.nodes
        rows.append(
            Row(
                name=name,
                trials=tuple(given),
                lossless=decoder is None or decoder.resolved.lossless,
                nodes=nodes,
                phases=phases,
                floor=1e3 * weight_bytes(target, (nodes or 1) * batch) / bandwidth,
            )
        )
    return Speed(
        rows=tuple(rows),
        baselines=tuple(baselines),
        greedy=params.temperature == 0,
        bandwidth=bandwidth,
    )


def brief(params: SamplingParams) -> SamplingParams:
    """Return parameters of a short answer, as one gives beforehand."""
    return params.model_copy(update={"max_new_tokens": min(_BRIEF, params.max_new_tokens)})


def limited(params: SamplingParams, texts: Texts, capacity: int) -> SamplingParams:
    """Return parameters under which no answer exceeds what every decoder holds."""
    room = capacity - max(len(text) for text in texts)
    return params.model_copy(update={"max_new_tokens": min(params.max_new_tokens, max(room, 1))})
