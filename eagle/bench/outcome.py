"""What a benchmark of speed found, and the figures that follow from it; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eagle.bench.quartiles import Quartiles
from eagle.cycle import PHASES

__all__ = ["PARTS", "Row", "Speed", "Trial"]

PARTS = (*PHASES, "host")
"""Of a cycle's duration: its phases, and what is left, in which the device waits."""


@dataclass(frozen=True)
class Trial:
    """Some prompts answered at once.

    Attributes:
        prompts: their indices.
        answers: new tokens of each.
        seconds: from the first prompt's reading to the last token.
        memory: bytes at the peak, weights and everybody's caches included.
        reading: of the seconds, those in which prompts were read; 0 where that is not known.
        cycles: cycles that ran, for all prompts together; 0 for transformers.
        verifications: cycles of each prompt, added up.
    """

    prompts: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    seconds: float
    memory: int
    reading: float = 0.0
    cycles: int = 0
    verifications: int = 0

    @property
    def tokens(self) -> int:
        """New tokens of all prompts."""
        return sum(len(answer) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, the reading of the prompts included."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Row:
    """One way of decoding.

    Attributes:
        name: of the spec or the baseline.
        trials: in the order in which they were made; those of all rows are of the same prompts.
        lossless: whether it keeps the target's distribution by declaration.
        nodes: of a token tree, the root included; None for transformers.
        phases: milliseconds of a cycle by phase, from a run of its own; empty for transformers.
        floor: milliseconds that reading the weights for one verification takes.
    """

    name: str
    trials: tuple[Trial, ...]
    lossless: bool
    nodes: int | None
    phases: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Over all trials."""
        return sum(t.tokens for t in self.trials) / sum(t.seconds for t in self.trials)

    @property
    def tau(self) -> float | None:
        """Tokens committed per verification; None where nothing was verified."""
        verifications = sum(trial.verifications for trial in self.trials)
        # The first token of an answer comes from the prompt's own pass.
        tokens = sum(trial.tokens - len(trial.answers) for trial in self.trials)
        return tokens / verifications if verifications else None

    @property
    def cycle(self) -> float | None:
        """Milliseconds of a cycle on the clock, the reading of prompts left out."""
        cycles = sum(trial.cycles for trial in self.trials)
        seconds = sum(trial.seconds - trial.reading for trial in self.trials if trial.cycles)
        return 1e3 * seconds / cycles if cycles else None

    @property
    def parts(self) -> dict[str, float]:
        """Milliseconds of a cycle by `PARTS`; empty where its phases were not timed."""
        if not self.phases or self.cycle is None:
            return {}
        host = max(self.cycle - sum(self.phases.values()), 0.0)
        return {phase: self.phases[phase] for phase in PHASES} | {"host": host}

    @property
    def share(self) -> float | None:
        """What part of a verification's time reading the weights would take."""
        verify = self.phases.get("verify")
        return self.floor / verify if verify else None

    @property
    def memory(self) -> int:
        """Bytes at the highest peak."""
        return max(trial.memory for trial in self.trials)

    def speedup(self, other: Row) -> Quartiles:
        """Return how many times as fast this one is, from the ratio of each pair of trials."""
        return Quartiles.of(
            mine.tokens_per_second / theirs.tokens_per_second
            for mine, theirs in zip(self.trials, other.trials, strict=True)
        )

    def same(self, other: Row) -> int:
        """Return how many answers have the same tokens."""
        return sum(
            a == b
            for mine, theirs in zip(self.trials, other.trials, strict=True)
            for a, b in zip(mine.answers, theirs.answers, strict=True)
        )


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        rows: the decoders, then the baselines.
        baselines: names of the rows that the others are held against.
        greedy: at temperature 0, where answers can be compared token by token.
        bandwidth: read bandwidth of the device in the same run, bytes per second.
    """

    rows: tuple[Row, ...]
    baselines: tuple[str, ...]
    greedy: bool
    bandwidth: float

    def row(self, name: str) -> Row:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def answers(self) -> int:
        """How many answers each row gave."""
        return sum(len(trial.answers) for trial in self.rows[0].trials)

    @property
    def prompts(self) -> int:
        """How many prompts were answered."""
        return len({index for trial in self.rows[0].trials for index in trial.prompts})
