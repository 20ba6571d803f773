"""One answer looked on while it is decoded, cycle by cycle: what the page at ``/`` draws.

It builds decoders that share the engine's target, with other trees or rules if that is wished, and
knows nothing of HTTP. They take turns with the engine, pass by pass, in all processes that hold the
target.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from eagle.decoding import Decoder, Engine, Event, Trace, TracedCycle
from eagle.errors import EagleError
from eagle.plugin import Role, SamplingParams, default_registry
from eagle.serve.problems import Problem, shut_down
from eagle.serve.requests import conversation
from eagle.serve.schemas import TraceRequest
from eagle.serve.settings import Settings
from eagle.serve.tokens import TokenTexts
from eagle.spec import NONE, ComponentSpec, DecoderSpec, load_spec, shipped_specs

__all__ = ["Watcher"]

_KEPT = 3  # decoders, each with a cache and a head of its own
_WAITING = 4  # who may wait for a look
_NODES = 256  # of a tree that a client chooses
_WORD = re.compile("[a-z0-9-]{1,40}")  # of a setting: a choice, and no path

_Found = tuple[Decoder, Trace | None]


class Watcher:
    """Decodes one conversation at a time, and tells of each cycle.

    Args:
        engine: whose target and spec are used.
        settings: limits.
        texts: of tokens.

    Attributes:
        waiting: how many look on or wait to.
    """

    def __init__(self, engine: Engine, settings: Settings, texts: TokenTexts) -> None:
        self._base, self._settings, self._texts = engine.decoder, settings, texts
        self._pool = ThreadPoolExecutor(1, "eagle-watch")
        self._lock, self.waiting, self._closed = asyncio.Lock(), 0, False
        self._made: OrderedDict[str, _Found] = OrderedDict()

    def close(self) -> None:
        """Let the thread end, and whoever looks on behind the cycle under way."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def choices(self) -> dict[str, Any]:
        """Return what a request may choose from, and what it gets without."""
        registry, spec = default_registry(), self._base.spec
        return {
            "spec": spec.name,
            "lossless": self._base.resolved.lossless,
            **{role.value: _told(spec, role) for role in (Role.TREE, Role.ACCEPTANCE)},
            "specs": {
                name: {
                    role.value: _told(load_spec(name), role)
                    for role in (Role.TREE, Role.ACCEPTANCE)
                }
                for name in shipped_specs()
            },
            "trees": sorted(one.name for one in registry.strategies(Role.TREE)),
            "acceptances": sorted(one.name for one in registry.strategies(Role.ACCEPTANCE)),
        }

    async def watch(self, body: TraceRequest, *, plain: bool) -> AsyncIterator[dict[str, Any]]:
        """Give what happens, in order: ``start``, a ``cycle`` each, ``end``.

        Args:
            body: what is asked.
            plain: decode without drafting, for comparison.

        Raises:
            Problem: the spec cannot be had, or too many look on already.
            EagleError: the conversation cannot be answered.
        """
        if self.waiting > _WAITING:
            raise Problem(429, "others are looking on; ask again later", code="queue_full",
                          kind="rate_limit_error", headers={"retry-after": "5"})  # fmt: skip
        self.waiting += 1
        try:
            async with asyncio.timeout(self._settings.timeout), self._lock:
                told = self._run(body, plain)
                try:
                    while one := await self._next(told):
                        yield one
                finally:
                    self._drop(told)
        except TimeoutError as error:
            raise Problem(504, "this took too long", code="timeout") from error
        finally:
            self.waiting -= 1

    async def _next(self, told: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        if self._closed:
            raise shut_down()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, next, told, None)
        except asyncio.CancelledError as error:
            if self._closed:
                raise shut_down() from error
            raise

    def _drop(self, told: Generator[dict[str, Any], None, None]) -> None:
        if self._closed:
            with suppress(ValueError):  # its last cycle is still under way, and ends by itself
                told.close()
        else:  # in that thread too, behind the cycle that may be under way
            asyncio.get_running_loop().run_in_executor(self._pool, told.close)

    def _run(self, body: TraceRequest, plain: bool) -> Generator[dict[str, Any], None, None]:
        decoder, trace = self._decoder(body, plain)
        params = SamplingParams(
            max_new_tokens=body.max_tokens or self._settings.default_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(body.top_k or 0, 0),
            min_p=body.min_p or 0.0,
            seed=None if body.seed is None else body.seed & (2**63 - 1),
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        )
        events = decoder.stream(
            conversation(body.messages), params, chat_template_kwargs=body.chat_template_kwargs
        )
        spec = decoder.spec
        yield {
            "type": "start",
            "tree": _told(spec, Role.TREE),
            "acceptance": _told(spec, Role.ACCEPTANCE),
            "lossless": decoder.resolved.lossless,
        }
        given, seconds, began = 0, 0.0, time.perf_counter()
        for number, event in enumerate(events):
            # What is told takes time, too, which decoding is not charged with.
            seconds += time.perf_counter() - began
            given += len(event.tokens)
            yield {
                "type": "cycle",
                "cycle": number,
                "pieces": self._pieces(event, first=number == 0),
                "tokens": list(event.tokens),
                "trace": self._traced(trace.cycle()) if trace and number else None,
                "seconds": seconds,
                "tokens_per_second": given / seconds,
                # The first token comes of the prompt's own pass.
                "tau": (given - 1) / number if number else None,
            }
            if event.result is not None:
                yield {
                    "type": "end",
                    "finish_reason": event.finish_reason,
                    "prompt_tokens": len(event.result.prompt_tokens),
                    "completion_tokens": given,
                    "cycles": number,
                    "tau": event.result.stats.tau,
                    "seconds": seconds,
                    "tokens_per_second": given / seconds,
                    "time_to_first_token": event.result.stats.time_to_first_token,
                    # As text: a number of 63 bits is more than JavaScript's hold. Given, it says
                    # the same again: over one slot trees are the same with a seed and without.
                    "seed": str(event.result.seed),
                }
            began = time.perf_counter()

    def _pieces(self, event: Event, *, first: bool) -> list[dict[str, str]]:
        def origin(drafted: bool) -> str:
            return "first" if first else "accepted" if drafted else "bonus"

        return [{"text": piece.text, "origin": origin(piece.drafted)} for piece in event.pieces]

    def _traced(self, cycle: TracedCycle) -> dict[str, Any]:
        text = self._texts.text
        return {
            "temperature": cycle.temperature,
            "nodes": [{**asdict(node), "text": text(node.token)} for node in cycle.nodes],
            "bonus": {
                "token": cycle.bonus,
                "text": text(cycle.bonus),
                "parent": cycle.last,
                "target_prob": cycle.bonus_prob,
            },
        }

    def _decoder(self, body: TraceRequest, plain: bool) -> _Found:
        """Return a decoder for what is asked, made now or before."""
        wanted = self._wanted(body, plain)
        key = json.dumps([plain, wanted.model_dump(mode="json")], sort_keys=True)
        if key not in self._made:
            while len(self._made) >= _KEPT:
                self._made.popitem(last=False)
            try:
                nodes = None if plain else _NODES
                self._made[key] = Trace.beside(self._base, wanted, plain=plain, nodes=nodes)
            except EagleError as error:
                raise Problem(400, str(error), param="spec") from error
        self._made.move_to_end(key)
        return self._made[key]

    def _wanted(self, body: TraceRequest, plain: bool) -> DecoderSpec:
        own = self._base.spec
        shipped = shipped_specs()
        if body.spec is not None and body.spec not in shipped:
            raise Problem(400, f"spec should be one of {', '.join(shipped)}", param="spec")
        chosen = load_spec(body.spec) if body.spec else own
        one = {"runtime": own.runtime.model_copy(update={"max_batch": 1})}
        if plain:
            none = {"head": NONE, "tree": NONE, "attention": own.attention, "target": own.target}
            return DecoderSpec.model_validate({"name": "plain", **none, **one})
        changes: dict[str, Any] = dict(one)
        for role in (Role.TREE, Role.ACCEPTANCE):
            given = getattr(body, role.value)
            if given is None:
                changes[role.value] = getattr(chosen, role.value)
                continue
            wrong = Problem(
                400,
                f"{role.value} should be a strategy's name, or a mapping with 'name' and settings "
                "that are numbers or single words",
                param=role.value,
            )
            if not _harmless(given):
                raise wrong
            try:
                changes[role.value] = ComponentSpec.model_validate(given)
            except ValueError as error:
                raise wrong from error
        # Where the operator's settings were written is nobody's business; paths start there.
        return own.model_copy(update=changes).labelled("the request")


def _told(spec: DecoderSpec, role: Role) -> Any:
    """Return a component as a request may give it again; what names a file is nobody's business."""
    component = getattr(spec, role.value)
    settings = {key: value for key, value in component.settings.items() if _harmless(value)}
    return {"name": component.name, **settings} if settings else component.name


def _harmless(value: Any) -> bool:
    """Return whether a setting can name no file."""
    if isinstance(value, dict):
        return all(_WORD.fullmatch(k.replace("_", "-")) and _harmless(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return len(value) <= _NODES and all(map(_harmless, value))
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool | int | float)
