"""What a comparison of many specs found, kept in a file, and who is ahead; measures nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eagle.bench.quartiles import Quartiles
from eagle.bench.served import Service
from eagle.errors import DataError
from eagle.host import write_text

__all__ = [
    "Competitor",
    "Race",
    "Section",
    "Standing",
    "digest_of",
    "read_sections",
    "write_sections",
]

_FORMAT = 1
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/]+/)+")


@dataclass(frozen=True)
class Race:
    """One spec on the prompts of one domain.

    Attributes:
        spec: its name.
        domain: of the prompts.
        temperature: of the answers.
        batch: requests decoded at once, at most.
        ratios: its tokens/s over plain's, turn by turn.
        answers: how many it gave.
        tokens: new tokens of all of them.
        verifications: cycles of all of them.
        seconds: that all turns took.
        same: answers with the very tokens of plain's; None above temperature 0.
    """

    spec: str
    domain: str
    temperature: float
    batch: int
    ratios: tuple[float, ...]
    answers: int
    tokens: int
    verifications: int
    seconds: float
    same: int | None = None

    @classmethod
    def of(
        cls,
        spec: str,
        domain: str,
        temperature: float,
        batch: int,
        services: Sequence[Service],
        plain: Sequence[Service],
    ) -> Race:
        """Return a spec's figures, from its turns and those of plain decoding."""
        pairs = list(zip(services, plain, strict=True))
        asked = [one for service in services for one in service.requests]
        others = [one for service in plain for one in service.requests]
        same = sum(a.answer == b.answer for a, b in zip(asked, others, strict=True))
        return cls(
            spec=spec,
            domain=domain,
            temperature=temperature,
            batch=batch,
            ratios=tuple(mine.tokens_per_second / his.tokens_per_second for mine, his in pairs),
            answers=len(asked),
            tokens=sum(len(one.answer) for one in asked),
            verifications=sum(one.verifications for one in asked),
            seconds=sum(service.seconds for service in services),
            same=same if temperature == 0 else None,
        )

    @property
    def cell(self) -> tuple[str, float, int]:
        """Under which it was run: domain, temperature and batch."""
        return self.domain, self.temperature, self.batch


@dataclass(frozen=True)
class Competitor:
    """Who was measured.

    Attributes:
        spec: the whole of it; figures of another spec of the same name are not its.
        lossless: whether it keeps the target's distribution by declaration.
        nodes: of a token tree, the root included.
        what: head, tree and rule in a few words.
    """

    spec: Mapping[str, Any]
    lossless: bool
    nodes: int
    what: str


@dataclass(frozen=True)
class Standing:
    """A spec over all domains, at one temperature and batch.

    Attributes:
        races: those that it stands for, at least one.
    """

    races: tuple[Race, ...]

    @property
    def speedup(self) -> Quartiles:
        """Its tokens/s over plain's: of all turns of all domains."""
        return Quartiles.of(ratio for race in self.races for ratio in race.ratios)

    @property
    def tau(self) -> float:
        """Tokens committed per verification."""
        tokens = sum(race.tokens - race.answers for race in self.races)
        return tokens / max(sum(race.verifications for race in self.races), 1)

    @property
    def tokens_per_second(self) -> float:
        """Over all turns."""
        return sum(race.tokens for race in self.races) / sum(race.seconds for race in self.races)

    @property
    def same(self) -> str:
        """How many answers are plain's, token by token; empty above temperature 0."""
        if any(race.same is None for race in self.races):
            return ""
        return f"{sum(r.same or 0 for r in self.races)} of {sum(r.answers for r in self.races)}"


@dataclass
class Section:
    """Comparisons on one machine and target, under one set of conditions.

    Attributes:
        subject: label of the target, dtype and hardware: figures of others have sections of their
            own.
        conditions: prompts and lengths, in words.
        inputs: a digest of them: with others all is measured anew.
        command: as it could be given again.
        versions: of Python and packages, in one line.
        competitors: by name.
        failed: why others could not run, by name.
        races: all that were run.
    """

    subject: str
    conditions: str
    inputs: str
    command: str
    versions: str
    competitors: dict[str, Competitor] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    races: list[Race] = field(default_factory=list)

    def within(self, sections: list[Section]) -> Section:
        """Return the one of some sections that this one goes on with, or put it among them."""
        for place, one in enumerate(sections):
            if one.subject == self.subject:
                if one.inputs == self.inputs:
                    one.command, one.versions = self.command, self.versions
                    one.failed.clear()
                    return one
                sections[place] = self
                return self
        sections.append(self)
        return self

    def enter(self, name: str, competitor: Competitor) -> None:
        """Take somebody in; figures of another spec of that name are forgotten."""
        if name in self.competitors and self.competitors[name] != competitor:
            self.races = [race for race in self.races if race.spec != name]
        self.competitors[name] = competitor
        self.failed.pop(name, None)

    def fail(self, name: str, why: str) -> None:
        """Note that somebody could not run; what it ran before that is forgotten.

        Of paths only the last part is kept: the page is for readers on other machines.
        """
        self.failed[name] = _FOLDERS.sub("", why)
        self.competitors.pop(name, None)
        self.races = [race for race in self.races if race.spec != name]

    def add(self, race: Race) -> None:
        """Keep a race, instead of an older one of the same spec in the same cell."""
        self.races = [one for one in self.races if (one.spec, one.cell) != (race.spec, race.cell)]
        self.races.append(race)

    def has(self, name: str, cell: tuple[str, float, int]) -> bool:
        """Return whether somebody has run in a cell."""
        return any(race.spec == name and race.cell == cell for race in self.races)

    @property
    def domains(self) -> list[str]:
        """Of the prompts, in the order in which they were first run."""
        return list(dict.fromkeys(race.domain for race in self.races))

    @property
    def modes(self) -> list[tuple[float, int]]:
        """Temperature and batch, in order."""
        return sorted({(race.temperature, race.batch) for race in self.races})

    def standing(self, name: str, temperature: float, batch: int) -> Standing | None:
        """Return how somebody stands in one mode, or None if it has not run there."""
        races = tuple(
            race
            for race in self.races
            if (race.spec, race.temperature, race.batch) == (name, temperature, batch)
        )
        return Standing(races) if races else None

    def ahead(self, temperature: float) -> dict[str, tuple[float, ...]]:
        """Return who is on the Pareto line at a temperature, with the speed-ups that decide it.

        That is whoever is not beaten: no other lossless one is at least as fast at the smallest
        and at the largest batch, and faster at one of them.
        """
        batches = sorted({batch for warmth, batch in self.modes if warmth == temperature})
        ends = sorted({batches[0], batches[-1]}) if batches else []
        points = {}
        for name, competitor in self.competitors.items():
            found = [self.standing(name, temperature, batch) for batch in ends]
            if competitor.lossless and found and all(found):
                points[name] = tuple(one.speedup.median for one in found if one)
        return {
            name: point
            for name, point in points.items()
            if not any(_beats(other, point) for other in points.values())
        }


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def digest_of(*inputs: Any) -> str:
    """Return a short digest of what a comparison was run on: of values that JSON can hold."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def read_sections(path: Path) -> list[Section]:
    """Return the sections that a file holds; none where there is no file.

    Raises:
        DataError: it is not what `write_sections` wrote.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}, not {_FORMAT}")
        return [_section(data) for data in found["sections"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path} holds no figures of a leaderboard ({error}); remove it, or begin with --fresh"
        ) from error


def _section(data: dict[str, Any]) -> Section:
    races = [Race(**race | {"ratios": tuple(race["ratios"])}) for race in data["races"]]
    competitors = {name: Competitor(**one) for name, one in data["competitors"].items()}
    return Section(**data | {"races": races, "competitors": competitors})


def write_sections(sections: Iterable[Section], path: Path) -> None:
    """Write sections to a file, which is replaced as a whole."""
    shown = {"format": _FORMAT, "sections": [asdict(section) for section in sections]}
    write_text(path, json.dumps(shown, ensure_ascii=False, indent=1) + "\n")
