"""What Prometheus is told: histograms of answers, and gauges of the engine, by its own counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from eagle.decoding import Engine, Result

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_TAU = (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 5, 6, 8)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Counts what a server answers.

    Args:
        engine: whose own counts are told too.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "eagle_http_requests", "Requests by path and status.", ("path", "status"), **made
        )
        self._left = Counter(
            "eagle_abandoned_requests", "Answers whose client left before the end.", **made
        )
        self._prompt = Counter("eagle_prompt_tokens", "Tokens of prompts.", **made)
        self._position = Counter(
            "eagle_accepted_tokens_per_position",
            "Draft tokens accepted, by their depth in the tree, from 1.",
            ("position",),
            **made,
        )
        self._positions: list[Any] = []  # the same by depth: to look one up takes longer
        self._tau = Histogram(
            "eagle_request_tau",
            "Tokens committed per verification, of each answer.",
            buckets=_TAU,
            **made,
        )
        self._cycles = Histogram(
            "eagle_request_cycles", "Verifications of each answer.", buckets=_COUNTS, **made
        )
        self._tokens = Histogram(
            "eagle_request_tokens", "New tokens of each answer.", buckets=_COUNTS, **made
        )
        self._queued = Histogram(
            "eagle_request_queue_seconds",
            "From a request's arrival to the reading of its prompt.",
            buckets=_SECONDS,
            **made,
        )
        self._first = Histogram(
            "eagle_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            **made,
        )
        self._each = Histogram(
            "eagle_time_per_token_seconds",
            "Mean time from token to token behind the first, of each answer.",
            buckets=_SHORT,
            **made,
        )
        self._whole = Histogram(
            "eagle_request_seconds",
            "From a request's arrival to its last token.",
            buckets=_SECONDS,
            **made,
        )

    def answered(self, results: Sequence[Result], prompts: Sequence[int]) -> None:
        """Count answers, and the tokens of the prompts that they are to."""
        self._prompt.inc(sum(prompts))
        for result in results:
            stats = result.stats
            self._tokens.observe(stats.new_tokens)
            self._queued.observe(stats.queued)
            self._first.observe(stats.queued + stats.time_to_first_token)
            self._whole.observe(stats.queued + stats.seconds)
            if stats.new_tokens > 1:
                self._each.observe(stats.seconds_per_token)
            if stats.cycles:
                self._tau.observe(stats.tau)
                self._cycles.observe(stats.cycles)
                counts = stats.accepted_per_position
                while len(self._positions) < len(counts):
                    self._positions.append(self._position.labels(len(self._positions) + 1))
                for position, count in zip(self._positions, counts, strict=False):
                    position.inc(count)

    def requested(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, status).inc()

    def abandoned(self, count: int) -> None:
        """Count answers that nobody waited for."""
        self._left.inc(count)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Reads the engine's counts when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        stats = self._engine.stats()
        for name, text, value in (
            ("eagle_requests_waiting", "Requests without a slot.", stats.waiting),
            ("eagle_requests_running", "Requests with a slot.", stats.active),
            ("eagle_slots", "How many requests can have a slot.", stats.slots),
            ("eagle_blocks_in_use", "Blocks of the cache that texts have.", stats.blocks),
            ("eagle_blocks", "Blocks of the cache.", stats.total_blocks),
            (
                "eagle_tokens_per_second",
                "Tokens given in the last ten seconds.",
                stats.tokens_per_second,
            ),
            ("eagle_tau", "Tokens committed per verification, of all requests.", stats.tau),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, value in (
            ("eagle_tokens", "Tokens given.", stats.tokens),
            ("eagle_verifications", "Verifications, of all requests.", stats.verified),
            ("eagle_draft_tokens", "Candidates that were verified.", stats.drafted),
            (
                "eagle_accepted_tokens",
                "Draft tokens that were accepted.",
                sum(stats.accepted_per_position),
            ),
        ):
            yield CounterMetricFamily(name, text, value=value)
        ends = CounterMetricFamily("eagle_answers", "Answers by how they ended.", labels=["how"])
        for how in ("finished", "failed", "cancelled"):
            ends.add_metric([how], getattr(stats, how))
        yield ends
