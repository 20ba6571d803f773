"""Serving requests with the clock running: all queued at once, or as they come at a rate.

Knows engines and whoever asks them, who sees tokens when they are delivered and no sooner. It
prints nothing, and what its figures mean is `eagle.bench.served`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eagle.bench.compare import plain_decoder
from eagle.bench.floors import peak_memory, reset_peak_memory
from eagle.bench.identity import agreement, evidence
from eagle.bench.served import Cell, Contender, Identity, Load, Served, Service
from eagle.bench.speed import brief, limited
from eagle.decoding import Decoder, Engine, Prompt, encode
from eagle.errors import EagleError, RequestError
from eagle.plugin import SamplingParams
from eagle.target import Target

__all__ = ["PLAIN", "Server", "Work", "arrivals", "judged", "measure_throughput", "take_turns"]

PLAIN = "plain"
"""What the decoder without drafting is called, which everything is held against."""

_TOGETHER = 8  # answers that the target reads at once when differences are judged

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """The requests of one round.

    Attributes:
        prompts: index of each one's prompt.
        texts: its tokens.
        dues: when it comes, in seconds from the start of the round.
    """

    prompts: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]
    dues: tuple[float, ...]

    @classmethod
    def queue(cls, prompts: Sequence[int], texts: Sequence[Sequence[int]]) -> Work:
        """Return requests for some of the prompts that all come at once."""
        chosen = tuple(tuple(texts[index]) for index in prompts)
        return cls(tuple(prompts), chosen, (0.0,) * len(chosen))


class Server:
    """A decoder behind an engine.

    Args:
        decoder: what serves; nobody else uses it meanwhile.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def warm_up(self, work: Work, params: SamplingParams) -> None:
        """Serve without being timed, so that all is allocated, compiled and captured.

        Where cycles are captured, as many requests as every width that they run at needs.
        """
        if self.decoder.target.device.type != "cuda":
            self.serve(Work.queue(range(len(work.texts)), work.texts), brief(params))
            return
        slots, width = self.decoder.max_batch, 1
        while width < slots:
            self._first(work, width, params)
            width *= 2
        self._first(work, slots, params)

    def _first(self, work: Work, width: int, params: SamplingParams) -> None:
        longest = sorted(range(len(work.texts)), key=lambda index: -len(work.texts[index]))
        chosen = [longest[number % len(longest)] for number in range(width)]
        self.serve(Work.queue(chosen, work.texts), params)

    def serve(self, work: Work, params: SamplingParams) -> Service:
        """Serve some requests; each has a seed of its own, which follows from that of *params*.

        Where these have none, nobody is given one.
        """
        decoder = self.decoder
        together = decoder.target.together
        if together is None:
            return self._serve(work, params)
        found: Service | EagleError
        try:
            found = self._serve(work, params)
        except EagleError as error:
            found = error
        found = together.share(found)  # who follows has seen no answers
        if isinstance(found, EagleError):
            raise found
        return found

    def _serve(self, work: Work, params: SamplingParams) -> Service:
        decoder = self.decoder
        device = decoder.target.device
        decoder.forget()  # a prompt that was answered before is read all the same
        reset_peak_memory(device)
        captured, blocks = decoder.captured, 0
        served: tuple[Served, ...] = ()
        with Engine(decoder, queue=len(work.texts)) as engine:
            if engine.leads:
                served, blocks = asyncio.run(_ask_all(engine, work, params))
        return Service(
            requests=served,
            memory=peak_memory(device),
            blocks=blocks,
            captured=decoder.captured - captured,
        )


async def _ask_all(
    engine: Engine, work: Work, params: SamplingParams
) -> tuple[tuple[Served, ...], int]:
    """Return what came of every request, and the most blocks that were seen in use."""
    most = 0
    started = time.perf_counter()

    async def ask(number: int) -> Served:
        nonlocal most
        due = work.dues[number]
        if due:
            await asyncio.sleep(started + due - time.perf_counter())
        seed = None if params.seed is None else params.seed + number
        own = params.model_copy(update={"seed": seed})
        handle = engine.submit(work.texts[number], own)
        times, sizes = [], []
        try:
            async for event in handle:
                times.append(time.perf_counter() - started)
                sizes.append(len(event.tokens))
                if event.finish_reason is None:
                    most = max(most, engine.stats().blocks)
        finally:
            if not handle.done:
                handle.cancel()
        result = handle.result()
        return Served(
            prompt=work.prompts[number],
            answer=result.tokens,
            due=due,
            times=tuple(times),
            sizes=tuple(sizes),
            verifications=result.stats.cycles,
        )

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(number)) for number in range(len(work.texts))]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # one failed first, and the others were cancelled
    return tuple(task.result() for task in tasks), most


def arrivals(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """Return when *count* requests come, in seconds, at *rate* a second: a Poisson process.

    Args:
        count: how many.
        rate: a second, on average.
        seed: the same seed, the same times.
    """
    gaps = np.random.Generator(np.random.PCG64(seed)).exponential(1 / rate, count)
    return tuple(gaps.cumsum().tolist())


def take_turns(
    servers: Mapping[str, Server],
    work: Sequence[Work],
    params: SamplingParams,
    progress: Callable[[str], None] = lambda name: None,
    lost: Callable[[str, EagleError], None] | None = None,
) -> dict[str, list[Service]]:
    """Have every server serve every piece of work, one right after another.

    The order turns round each time, so that a machine that slows down favours nobody.

    Args:
        servers: by name.
        work: in order.
        params: for all requests.
        progress: called with who is next.
        lost: called with who failed, and how; it takes no further turn and is left out of what is
            returned. Without it, and of plain decoding, a failure is everybody's.

    Returns:
        What each served, by name.
    """
    given: dict[str, list[Service]] = {name: [] for name in servers}
    for number, one in enumerate(work):
        names = list(given)
        for name in names if number % 2 == 0 else reversed(names):
            progress(name)
            try:
                given[name].append(servers[name].serve(one, params))
            except EagleError as error:
                if lost is None or name == PLAIN:
                    raise
                lost(name, error)
                del given[name]
    return given


def measure_throughput(
    decoders: Mapping[str, Decoder],
    prompts: Sequence[Prompt],
    params: SamplingParams,
    loads: Sequence[Load],
    *,
    rounds: int = 3,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Cell, ...]:
    """Serve prompts under some loads by every decoder and by plain decoding, and time it.

    Args:
        decoders: by name, at least one; all of one target. How many requests each decodes at once
            is set here.
        prompts: each is asked once a round; no fewer than any load has slots.
        params: for all requests. With a seed each has its own that follows from it, the same in
            every round and of every decoder; without one nobody is given any, as servers are mostly
            used: above temperature 0 trees may follow the batch then, and each round has other
            texts of the same distribution. Prompts and arrivals are the same either way.
        loads: how requests come.
        rounds: of each load.
        progress: called with what is done, how much of it, and its total.

    Returns:
        A cell for each load.

    Raises:
        RequestError: a prompt is not valid, or there are fewer than a load has slots; a decoder is
            called as plain decoding is.
    """
    if PLAIN in decoders:
        raise RequestError(f"{PLAIN!r} is measured beside all others already; leave that spec out")
    widest = max((load.slots for load in loads if load.rate is None), default=1)
    if len(prompts) < widest:
        raise RequestError(
            f"a batch of {widest} needs as many prompts; there are {len(prompts)}, so give more, "
            "or smaller batches"
        )
    first = next(iter(decoders.values()))
    target = first.target
    ours = {**decoders, PLAIN: plain_decoder(first)}
    servers = {name: Server(decoder) for name, decoder in ours.items()}
    texts = [encode(p, target.tokenizer, raw=False, embeddings=target.embeddings) for p in prompts]
    own = limited(params, texts, min(decoder.capacity for decoder in ours.values()))
    everyone = Work.queue(range(len(texts)), texts)

    total, done = len(loads) * rounds * len(servers), 0
    cells = []
    for load in loads:
        for name, server in servers.items():
            progress(f"warming up {name}, {load.label}", done, total)
            if server.decoder.max_batch != load.slots or load is loads[0]:
                server.decoder.loop.resize(load.slots)
            server.warm_up(everyone, own)
        work = [_round(everyone, load, (params.seed or 0) + number) for number in range(rounds)]

        def timing(name: str, load: Load = load) -> None:
            nonlocal done
            progress(f"timing {name}, {load.label}", done, total)
            done += 1

        given = take_turns(servers, work, own, timing)
        contenders = [
            Contender(
                name,
                tuple(services),
                lossless=ours[name].resolved.lossless,
                nodes=ours[name].resolved.tree.shape.nodes,
            )
            for name, services in given.items()
        ]
        if params.temperature == 0:
            progress(f"comparing answers, {load.label}", done, total)
            contenders = judged(target, texts, contenders)
        cells.append(Cell(load, tuple(contenders)))
    return tuple(cells)


def _round(everyone: Work, load: Load, seed: int) -> Work:
    if load.rate is None:
        return everyone
    dues = arrivals(len(everyone.texts), load.rate, seed)
    return Work(everyone.prompts, everyone.texts, dues)


def judged(
    target: Target, texts: Sequence[Sequence[int]], contenders: Sequence[Contender]
) -> list[Contender]:
    """Return contenders with their greedy answers compared with those of the last, plain decoding.

    Where two answers differ, the target's own passes say whether that is a tie.
    """
    plain, found = contenders[-1], []
    for one in contenders:
        pairs = one.differing(plain)
        ties = 0
        if pairs:
            different = list(dict.fromkeys(pairs))
            asked = [texts[prompt] for prompt, _, _ in different]
            answers = [answer for _, answer, _ in different]
            others = [other for _, _, other in different]
            passes = evidence(
                target,
                asked,
                answers,
                [[other] for other in others],
                width=one.nodes,
                batch=_TOGETHER,
            )
            verdict = agreement(answers, others, passes, target.dtype)
            tied = {different[choice.prompt] for choice in verdict.divergences if choice.tie}
            ties = sum(pair in tied for pair in pairs)
        answers_given = len(one.requests)
        identity = Identity(answers_given, answers_given - len(pairs), ties)
        found.append(Contender(one.name, one.rounds, one.lossless, one.nodes, identity))
    return found
