"""What it took to serve some requests, and the figures that follow from it; measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from eagle.bench.quartiles import Quartiles

__all__ = ["Cell", "Contender", "Identity", "Load", "Percentiles", "Served", "Service"]


@dataclass(frozen=True)
class Percentiles:
    """What half of some values, and 99 of 100 of them, are not above.

    By nearest rank (Hyndman and Fan 1996, definition 1): each is one of the values. Of fewer than
    a hundred, the 99th percentile is the largest.

    Attributes:
        n: how many values.
        p50: the 50th percentile.
        p99: the 99th.
    """

    n: int
    p50: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles | None:
        """Return those of some values, or None of none.

        >>> Percentiles.of(range(1, 201))
        Percentiles(n=200, p50=100, p99=198)
        """
        ranked = sorted(values)
        if not ranked:
            return None
        fiftieth, ninety_ninth = (ranked[-(-len(ranked) * share // 100) - 1] for share in (50, 99))
        return cls(len(ranked), fiftieth, ninety_ninth)


@dataclass(frozen=True)
class Served:
    """One request, as whoever asked saw it; seconds are counted from the start of its round.

    Attributes:
        prompt: its index.
        answer: its new tokens.
        due: when it came; a client that was late in handing it over excuses nobody.
        times: when tokens were delivered, one time for each delivery.
        sizes: tokens of each delivery: as many as a cycle committed.
        verifications: cycles of it.
    """

    prompt: int
    answer: tuple[int, ...]
    due: float
    times: tuple[float, ...]
    sizes: tuple[int, ...]
    verifications: int

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.due

    @property
    def whole(self) -> float:
        """Seconds to the last token."""
        return self.times[-1] - self.due

    @property
    def token(self) -> float | None:
        """Seconds for each token after the first delivery; None where there was no other."""
        later = sum(self.sizes[1:])
        return (self.times[-1] - self.times[0]) / later if later else None

    @property
    def waits(self) -> list[float]:
        """Seconds between deliveries: what a reader sees stand still."""
        return [after - before for before, after in pairwise(self.times)]


@dataclass(frozen=True)
class Service:
    """One round: some requests served by one contender.

    Attributes:
        requests: in the order in which they came.
        memory: bytes at the peak, weights and everybody's caches included; of the process on a CPU.
        blocks: of the cache that texts had, at most; 0 where rows do not lie in blocks.
        captured: graphs that were captured meanwhile, which takes time that no later round takes.
    """

    requests: tuple[Served, ...]
    memory: int
    blocks: int = 0
    captured: int = 0

    @property
    def tokens(self) -> int:
        """New tokens of all requests."""
        return sum(len(one.answer) for one in self.requests)

    @property
    def seconds(self) -> float:
        """From the start of the round to the last token."""
        return max(one.times[-1] for one in self.requests)

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, all waiting included."""
        return self.tokens / self.seconds

    @property
    def latency(self) -> float:
        """Seconds to the last token of a request, on average."""
        return sum(one.whole for one in self.requests) / len(self.requests)


@dataclass(frozen=True)
class Identity:
    """A contender's greedy answers against those of plain decoding under the same load.

    Attributes:
        answers: how many there are.
        same: those with the same tokens.
        ties: of the others, those whose first difference is a tie of the target's (see
            `eagle.bench.identity`).
    """

    answers: int
    same: int
    ties: int

    def show(self) -> str:
        """Return it in words."""
        rest = self.answers - self.same - self.ties
        parts = [f"{self.same} of {self.answers}"]
        parts += [f"{self.ties} tied"] if self.ties else []
        parts += [f"{rest} DIFFER"] if rest else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Contender:
    """Whoever served, in all rounds of one load.

    Attributes:
        name: of the spec, or ``plain``.
        rounds: in order; those of all contenders have the same requests.
        lossless: whether it keeps the target's distribution by declaration.
        nodes: of a token tree, the root included.
        identity: with plain's answers; None above temperature 0.
    """

    name: str
    rounds: tuple[Service, ...]
    lossless: bool = True
    nodes: int = 1
    identity: Identity | None = None

    @property
    def requests(self) -> list[Served]:
        """Those of all rounds."""
        return [one for service in self.rounds for one in service.requests]

    @property
    def tokens_per_second(self) -> Quartiles:
        """Of the rounds."""
        return Quartiles.of(service.tokens_per_second for service in self.rounds)

    @property
    def tau(self) -> float | None:
        """Tokens committed per verification; None where nothing was verified."""
        asked = self.requests
        verifications = sum(one.verifications for one in asked)
        # The first token of an answer comes from the prompt's own pass.
        tokens = sum(len(one.answer) - 1 for one in asked)
        return tokens / verifications if verifications else None

    @property
    def first(self) -> Percentiles | None:
        """Seconds to the first token, over requests."""
        return Percentiles.of(one.first for one in self.requests)

    @property
    def token(self) -> Percentiles | None:
        """Seconds for each further token, over requests."""
        return Percentiles.of(one.token for one in self.requests if one.token is not None)

    @property
    def waits(self) -> Percentiles | None:
        """Seconds between deliveries, over all of them."""
        return Percentiles.of(wait for one in self.requests for wait in one.waits)

    @property
    def whole(self) -> Percentiles | None:
        """Seconds to the last token, over requests."""
        return Percentiles.of(one.whole for one in self.requests)

    @property
    def memory(self) -> int:
        """Bytes at the highest peak."""
        return max(service.memory for service in self.rounds)

    @property
    def blocks(self) -> int:
        """Blocks of the cache at the highest peak."""
        return max(service.blocks for service in self.rounds)

    @property
    def captured(self) -> int:
        """Graphs that were captured while the clock ran."""
        return sum(service.captured for service in self.rounds)

    def speedup(self, other: Contender) -> Quartiles:
        """Return how many times its tokens/s are another's, from the ratio of each round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return Quartiles.of(mine.tokens_per_second / his.tokens_per_second for mine, his in pairs)

    def quickness(self, other: Contender) -> Quartiles:
        """Return how many times another's mean latency is this one's, likewise."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return Quartiles.of(his.latency / mine.latency for mine, his in pairs)

    def differing(self, other: Contender) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """Return prompt, answer and the other's answer wherever they are not the same."""
        pairs = zip(self.requests, other.requests, strict=True)
        return [
            (mine.prompt, mine.answer, his.answer)
            for mine, his in pairs
            if mine.answer != his.answer
        ]


@dataclass(frozen=True)
class Load:
    """How requests come.

    Attributes:
        slots: requests decoded at once, at most.
        rate: requests a second, at random times (Poisson); None where all are queued at once.
    """

    slots: int
    rate: float | None = None

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return f"batch {self.slots}" if self.rate is None else f"{self.rate:g}/s"


@dataclass(frozen=True)
class Cell:
    """One load, and all who served under it.

    Attributes:
        load: how requests came.
        contenders: those of the specs, then plain decoding.
    """

    load: Load
    contenders: tuple[Contender, ...] = field(default_factory=tuple)

    @property
    def plain(self) -> Contender:
        """Plain decoding."""
        return self.contenders[-1]

    @property
    def specs(self) -> Sequence[Contender]:
        """All but plain decoding."""
        return self.contenders[:-1]
