"""An engine in process: handed all prompts at once, or asked by as many as would be clients.

What lies between the two is what it costs that a slot is free until whoever had it asks again. What
lies between the second and a server is the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from eagle.decoding import Engine, Handle, Result
from measure_serve.crowd import Answers, in_order

__all__ = ["asked_by_clients", "counted", "whole_queue"]


def whole_queue(engine: Engine, prompts: Sequence[str], tokens: int, temperature: float) -> Answers:
    """Hand an engine all prompts at once."""
    began = time.perf_counter()
    handles = [_submitted(engine, one, tokens, temperature) for one in prompts]
    results = [handle.result() for handle in handles]
    assert all(isinstance(result.text, str) for result in results)  # it is made when looked at
    return _answers(time.perf_counter() - began, results)


def asked_by_clients(
    engine: Engine, prompts: Sequence[str], tokens: int, temperature: float, clients: int
) -> Answers:
    """Ask an engine by so many tasks, each of which reads an answer's events before it asks again.

    It is the clients' queue and their order, with neither HTTP nor another process.
    """
    waiting, firsts, results = iter(prompts), list[tuple[float, float]](), list[Result]()

    async def client() -> None:
        for prompt in waiting:
            asked, first = time.perf_counter(), 0.0
            handle = _submitted(engine, prompt, tokens, temperature)
            async for event in handle:
                if event.text and not first:
                    first = time.perf_counter()
            firsts.append((asked, first - asked))
            results.append(handle.result())

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    began = time.perf_counter()
    asyncio.run(all_of_them())
    seconds = time.perf_counter() - began
    return replace(_answers(seconds, results), firsts=in_order(firsts))


def counted(engine: Engine, way: Callable[[], Answers]) -> Answers:
    """Return what came by a way, with the cycles that the engine began for it."""
    before = engine.stats().cycles
    found = way()
    return replace(found, cycles=engine.stats().cycles - before)


def _submitted(engine: Engine, prompt: str, tokens: int, temperature: float) -> Handle:
    how: dict[str, Any] = {"temperature": temperature, "ignore_eos": True}
    return engine.submit(prompt, max_new_tokens=tokens, **how)


def _answers(seconds: float, results: Sequence[Result]) -> Answers:
    return Answers(
        seconds,
        sum(len(result.tokens) for result in results),
        steps=sum(result.stats.cycles for result in results),
        accepted=sum(sum(result.stats.accepted_per_position) for result in results),
    )
