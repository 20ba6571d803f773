"""Many clients, each of whom asks for the next prompt of a queue when it has its answer.

They are a process of their own, and know no engine: any server by OpenAI's interface will do.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from measure_serve.asking import opened_to, request_of, told

__all__ = ["Answers", "Crowd", "crowds", "in_order", "model_at"]

# What vLLM counts of its drafts for all requests; ours says in each answer how that one went.
_COUNTED = ("vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_accepted_tokens_total")


@dataclass(frozen=True)
class Crowd:
    """What is to be asked.

    Attributes:
        port: whom, on this machine.
        prompts: what, in this order.
        tokens: of each answer.
        clients: who ask at a time, each over one connection that it keeps.
        temperature: of sampling.
        model: its name there; None where none is wanted.
    """

    port: int
    prompts: tuple[str, ...]
    tokens: int
    clients: int
    temperature: float = 0.0
    model: str | None = None


@dataclass(frozen=True)
class Answers:
    """What came, and how long it took.

    Attributes:
        seconds: from the first question to the last answer's end.
        tokens: of all answers.
        firsts: of each answer, seconds from its question to its first text, in the order of the
            questions: those of the first wave, which come at once, are at the beginning.
        steps: verifications; 0 where nobody says.
        accepted: draft tokens that were accepted.
        cycles: of the engine, each of which verifies for several answers; 0 where nobody says.
    """

    seconds: float
    tokens: int
    firsts: tuple[float, ...] = ()
    steps: int = 0
    accepted: int = 0
    cycles: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def tau(self) -> float:
        """Tokens per verification; 1 where there were none."""
        return 1 + self.accepted / self.steps if self.steps else 1.0


def in_order(found: Iterable[tuple[float, float]]) -> tuple[float, ...]:
    """Return what first tokens took, each given behind when it was asked for, in that order."""
    return tuple(took for _, took in sorted(found))


def crowds(orders: Any, results: Any) -> None:
    """Ask as is ordered, until there are no orders."""
    while (order := orders.get()) is not None:
        results.put(_asked(order))


def model_at(port: int) -> str:
    """Return what a server calls its model."""
    return str(json.loads(_read(port, "/v1/models"))["data"][0]["id"])


def _asked(order: Crowd) -> Answers:
    more: dict[str, Any] = {"temperature": order.temperature}
    more |= {"stream_options": {"include_usage": True}}
    if order.model is not None:
        more["model"] = order.model
    waiting: SimpleQueue[bytes] = SimpleQueue()
    for prompt in order.prompts:
        waiting.put(request_of(prompt, order.tokens, **more))
    firsts: list[tuple[float, float]] = []
    found: list[dict[str, Any]] = []
    failed: list[Exception] = []

    def client() -> None:
        try:
            with opened_to(order.port) as connection:
                while not failed:
                    request = waiting.get_nowait()
                    began = time.perf_counter()
                    first, body = told(connection, request)
                    firsts.append((began, first - began))
                    found.append(_last(body))
        except Empty:
            pass
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=client) for _ in range(order.clients)]
    before, began = _counts(order.port), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failed:
        raise failed[0]
    steps, accepted = (now - was for now, was in zip(_counts(order.port), before, strict=True))
    for last in found:
        drafted = (last.get("metrics") or {}).get("speculative_decoding") or {}
        steps += drafted.get("num_spec_steps", 0)
        accepted += drafted.get("num_accepted_draft_tokens", 0)
    tokens = sum(last["usage"]["completion_tokens"] for last in found)
    return Answers(seconds, tokens, in_order(firsts), steps, accepted)


def _last(body: bytes) -> dict[str, Any]:
    """Return the event of a stream that says what it used."""
    events = re.findall(rb"^data: (\{.*\})\r?$", body, re.MULTILINE)
    last: dict[str, Any] = json.loads(events[-1])
    if not last.get("usage"):
        raise RuntimeError(f"a stream ended without its usage: {events[-1][:1000]!r}")
    return last


def _counts(port: int) -> tuple[int, int]:
    """Return what a server has counted of verifications and accepted tokens, if it does so."""
    text = _read(port, "/metrics").decode(errors="replace")
    found = (re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name in _COUNTED)
    steps, accepted = (sum(int(float(value)) for value in values) for values in found)
    return steps, accepted


def _read(port: int, path: str) -> bytes:
    """Return what is at an address; nothing where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
        return content if response.status == 200 else b""
    finally:
        connection.close()
