"""Runs many specs on prompts of several kinds, cell by cell, and keeps what is finished.

Knows how a comparison is run and resumed; what its figures mean is `eagle.bench.standings`', how
they are shown is `eagle.bench.leaderboard_page`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eagle.bench.prompts import read_prompts
from eagle.bench.serving import PLAIN, Server, Work, take_turns
from eagle.bench.speed import brief, limited
from eagle.bench.standings import Competitor, Race, Section
from eagle.decoding import Decoder, encode
from eagle.errors import EagleError, reason
from eagle.plugin import SamplingParams
from eagle.spec import DecoderSpec

__all__ = ["competitor_of", "run_leaderboard", "shipped_prompts"]

_FOLDER = Path(__file__).with_name("domains")
_ORDER = ("chat", "code", "maths", "translation", "summaries", "retrieval", "rewriting")


def shipped_prompts() -> dict[str, list[str]]:
    """Return the prompts that come with the library, by domain."""
    return {name: read_prompts(_FOLDER / f"{name}.txt") for name in _ORDER}


def competitor_of(decoder: Decoder, spec: DecoderSpec) -> Competitor:
    """Return what is to be known of a decoder beside its figures.

    Args:
        decoder: of that spec, or of one with a widened head in a folder of its own.
        spec: as it was asked for, so that it is known again.
    """
    resolved = decoder.resolved
    return Competitor(
        spec=spec.model_dump(mode="json", exclude={"name", "description", "runtime"}),
        lossless=resolved.lossless,
        nodes=resolved.tree.shape.nodes,
        what=f"{spec.head.name}, {spec.tree.name}, {spec.acceptance.name}",
    )


def run_leaderboard(
    section: Section,
    decoders: Mapping[str, Decoder],
    domains: Mapping[str, Sequence[str]],
    params: SamplingParams,
    *,
    specs: Mapping[str, DecoderSpec],
    temperatures: Sequence[float],
    batches: Sequence[int],
    rounds: int = 1,
    keep: Callable[[], None] = lambda: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Run whatever has not been run yet, cell by cell, with plain decoding beside it in turns.

    Who fails is left out from there on, and the section says why.

    Args:
        section: what was found so far; everything is added to it.
        decoders: by name, plain decoding among them; all of one target.
        domains: prompts by domain.
        params: for all answers; the temperature is set here.
        specs: of the decoders, as they were asked for.
        temperatures: of answers.
        batches: requests decoded at once, at most.
        rounds: over each domain's prompts.
        keep: called whenever a cell is finished.
        progress: called with what is done, how much of it, and its total.
    """
    plain = decoders[PLAIN]
    target = plain.target
    texts = {
        domain: [
            tuple(encode(p, target.tokenizer, raw=False, embeddings=target.embeddings))
            for p in prompts
        ]
        for domain, prompts in domains.items()
    }
    capacity = min(decoder.capacity for decoder in decoders.values())
    own = limited(params, [text for some in texts.values() for text in some], capacity)
    servers = {name: Server(decoder) for name, decoder in decoders.items()}
    for name, decoder in decoders.items():
        section.enter(name, competitor_of(decoder, specs[name]))

    def lost(name: str, error: EagleError) -> None:
        section.fail(name, reason(error))
        servers.pop(name, None)

    cells = [(d, t, b) for b in batches for t in temperatures for d in domains]
    warm: dict[str, tuple[float, int]] = {}
    for number, (domain, temperature, batch) in enumerate(cells):
        cell = (domain, temperature, batch)
        missing = [name for name in servers if name != PLAIN and not section.has(name, cell)]
        if not missing:
            continue
        ours = own.model_copy(update={"temperature": temperature})
        for name in [*missing, PLAIN]:
            if warm.get(name) != (temperature, batch):
                progress(f"warming up {name}", number, len(cells))
                resized = name not in warm or warm[name][1] != batch
                try:
                    _warm_up(servers[name], texts, ours, batch, resized)
                except EagleError as error:
                    if name == PLAIN:
                        raise
                    lost(name, error)
                warm[name] = (temperature, batch)
        progress(f"{domain}, temperature {temperature:g}, batch {batch}", number, len(cells))
        running = {name: servers[name] for name in [*missing, PLAIN] if name in servers}
        work = _groups(texts[domain], batch) * rounds
        given = take_turns(running, work, ours, lost=lost)
        for name, services in given.items():
            race = Race.of(name, domain, temperature, batch, services, given[PLAIN])
            section.add(race)
        keep()


def _groups(texts: Sequence[tuple[int, ...]], batch: int) -> list[Work]:
    """Return the work of a domain: as many requests at a time as are decoded at once."""
    return [
        Work.queue(range(start, min(start + batch, len(texts))), texts)
        for start in range(0, len(texts), batch)
    ]


def _warm_up(
    server: Server,
    texts: Mapping[str, Sequence[tuple[int, ...]]],
    params: SamplingParams,
    batch: int,
    resized: bool,
) -> None:
    longest = sorted((text for some in texts.values() for text in some), key=len)[-batch:]
    if resized:
        server.decoder.loop.resize(batch)
    server.warm_up(Work.queue(range(len(longest)), longest), params)
    if server.decoder.target.device.type == "cuda":
        # Prompts of other lengths are read by passes that are captured, too.
        for some in texts.values():
            for work in _groups(some, batch):
                server.serve(work, brief(params))
