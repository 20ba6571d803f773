"""An engine, the server before it, and others' servers, when many ask: one queue, in turns.

The engine is handed the whole queue: that is what a server has to come near to. It is also asked in
process as a server is, by clients each of whom takes the next prompt when it has an answer, which
tells what that costs by itself. Rounds go engine, engine asked, server, others, engine, ... engine,
engine asked, so that each server's round lies between two of the engine's by either way, and is
held against their mean: a machine that grows slower makes nobody look worse. The server runs in its
own rounds alone, since it has threads take turns sooner than an engine without one does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from eagle.bench import PROMPTS, find_shape, prepare, read_prompts
from eagle.decoding import Decoder, Engine, Prompt, encode
from eagle.spec import load_spec
from measure_serve.asking import apart
from measure_serve.crowd import Answers, Crowd, crowds, model_at
from measure_serve.figures import many_json, many_lines
from measure_serve.inside import asked_by_clients, counted, whole_queue
from measure_serve.sites import frozen, serving

__all__ = ["answers", "check_room", "decoder_of", "measure_many", "queue_of", "rounds"]

ENGINE, ASKED, SERVER = "the engine, whole queue", "the engine, asked by clients", "the server"
Way = Callable[[], Answers]


def measure_many(given: argparse.Namespace) -> None:
    """Measure by all ways that are wished, print what that took, and write it down."""
    began = time.perf_counter()
    until = began + 60 * given.minutes
    with apart(crowds) as ask, ExitStack() as stack:
        ways: dict[str, Way] = {}
        prompts = queue_of(given)
        engine = None
        if given.spec != "none":
            decoder = decoder_of(given)
            check_room(decoder, prompts, given.tokens)  # before anything is compiled
            engine = stack.enter_context(Engine(decoder, queue=len(prompts)))
            engine.warm_up()
            stack.enter_context(frozen())
            ways = _own(engine, ask, prompts, given)
        for url in given.url:  # it may still start while an engine does
            port = urlsplit(url).port or 80
            if answers(port, began + 30 * given.minutes):
                ways[url] = _asked(ask, _crowd(port, prompts, given))
            else:
                print(f"nobody answers at {url}", flush=True)
        if not ways:
            raise SystemExit("there is nobody to ask")
        bases = (ENGINE, ASKED) if engine else ()
        found = rounds(ways, given.rounds, until, bases=max(len(bases), 1))
        about = {
            "spec": given.spec,
            "set": given.set,
            "target": engine.decoder.target.info.name if engine else None,
            "device": str(engine.decoder.target.device) if engine else None,
            **{name: getattr(given, name) for name in ("clients", "each", "tokens", "temperature")},
        }
        print(*many_lines(found, bases, about), sep="\n", flush=True)
        if given.json:
            Path(given.json).write_text(many_json(found, bases, about))


def answers(port: int, until: float) -> bool:
    """Return whether a server answers, or does so before a time of `time.perf_counter`."""
    while True:
        try:
            model_at(port)
            return True
        except (OSError, ValueError):
            if time.perf_counter() > until:
                return False
        time.sleep(0.5)


def queue_of(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the prompts, so many for each client."""
    some = read_prompts(given.prompts) if given.prompts else list(PROMPTS)
    return tuple(some[place % len(some)] for place in range(given.clients * given.each))


def decoder_of(given: argparse.Namespace) -> Decoder:
    """Return a decoder with a slot for each client: of a saved pair, at a shape, or as it is."""
    settings = [f"runtime.max_batch={given.clients}", *given.set]
    if given.pair:
        pair = Path(given.pair).resolve()
        settings += [f"target.model={pair / 'target'}", f"head.weights={pair / 'head'}"]
    spec = load_spec(given.spec, settings)
    shape = find_shape(given.shape) if given.shape else None
    return next(iter(prepare([spec], shape).decoders.values()))


def check_room(decoder: Decoder, prompts: Sequence[Prompt], tokens: int) -> None:
    """End with a sentence where a prompt has no room for so many tokens behind it."""
    target, room = decoder.target, decoder.capacity - tokens
    for number, prompt in enumerate(prompts, 1):
        ids = encode(prompt, target.tokenizer, raw=False, embeddings=target.embeddings)
        if len(ids) > room:
            raise SystemExit(
                f"error: prompt {number} has {len(ids)} tokens, and the decoder's "
                f"{decoder.capacity} leave {max(room, 0)} for one before {tokens} of its answer; "
                "raise runtime.max_length, lower --tokens, or give shorter prompts"
            )


def rounds(
    ways: Mapping[str, Way], most: int, until: float, *, bases: int = 1
) -> dict[str, list[Answers]]:
    """Ask by all ways in turns, behind a round that warms up, and by the first ones once more.

    Args:
        ways: by name.
        most: rounds.
        until: of `time.perf_counter`: no round begins that would end later, but for the first.
        bases: so many ways, the first ones, are those that others are held against.
    """
    for way in ways.values():
        way()
    found: dict[str, list[Answers]] = {name: [] for name in ways}
    took = 0.0
    for number in range(most):
        began = time.perf_counter()
        if number and began + took > until:
            break
        for name, way in ways.items():
            found[name].append(way())
        took = time.perf_counter() - began
    for name in [*ways][:bases]:
        found[name].append(ways[name]())
    return found


def _own(
    engine: Engine,
    ask: Callable[[Crowd], Answers],
    prompts: tuple[str, ...],
    given: argparse.Namespace,
) -> dict[str, Way]:
    how = (engine, prompts, given.tokens, given.temperature)

    def served() -> Answers:
        with serving(engine) as port:
            return ask(_crowd(port, prompts, given))

    return {
        ENGINE: lambda: counted(engine, lambda: whole_queue(*how)),
        ASKED: lambda: counted(engine, lambda: asked_by_clients(*how, given.clients)),
        SERVER: lambda: counted(engine, served),
    }


def _asked(ask: Callable[[Crowd], Answers], crowd: Crowd) -> Way:
    return lambda: ask(crowd)


def _crowd(port: int, prompts: tuple[str, ...], given: argparse.Namespace) -> Crowd:
    how = (given.tokens, given.clients, given.temperature)
    return Crowd(port, prompts, *how, model=model_at(port))
