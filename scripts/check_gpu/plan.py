"""What is measured at which shape, and how the time is divided; starts nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from check_gpu.figures import digest

__all__ = ["Lane", "Plan", "Share", "case_name", "prompts_of"]

_TEXTS = 48  # prompts of a file that are used, spread over it
_MANY = 32  # requests whose caches fill a third of 80 GB at a large shape
_ABREAST = {"llama2-7b": ((1, 8), (32,))}
_ABREAST_TWICE = {"llama2-7b": ((1, 8),)}  # weights and caches of both checkouts fit into 80 GB


@dataclass(frozen=True)
class Share:
    """By when each step must be over, as parts of the whole time."""

    tests: float = 0.42
    prepare: float = 0.52
    rounds: float = 0.69
    phases: float = 0.74
    start: float = 0.88
    passes: float = 0.95


@dataclass(frozen=True)
class Lane:
    """One process: a shape, and the numbers of requests at once that it serves.

    Lanes are prepared side by side, since compiling is work of the host, and timed one at a time.
    """

    shape: str
    batches: tuple[int, ...]

    @property
    def heavy(self) -> bool:
        """Whether it is to wait until the tests have given their memory back."""
        return self.shape not in ("135m", "tiny") and max(self.batches) >= _MANY

    @property
    def name(self) -> str:
        """What its log and its troubles are called by."""
        return f"{self.shape}/b{'+'.join(map(str, self.batches))}"


@dataclass(frozen=True)
class Plan:
    """All that a run should measure.

    Attributes:
        shapes: ``135m`` is the embedded model as it is, ``tiny`` the tiny pair.
        batches: requests at once.
        specs: names; those that draft come first.
        temperatures: of sampling.
        rounds: groups of prompts that every case answers.
        tokens: new ones of every answer.
        length: the longest text.
        prompts: texts.
        starts: how often a command is started.
        nodes: of the trees whose passes are timed alone.
    """

    shapes: tuple[str, ...]
    batches: tuple[int, ...]
    specs: tuple[str, ...]
    temperatures: tuple[float, ...]
    rounds: int
    tokens: int
    length: int
    prompts: tuple[str, ...]
    starts: int
    nodes: tuple[int, ...]

    def lanes(self, *, twice: bool) -> list[Lane]:
        """Return the processes of one checkout; *twice* where another one's run beside them."""
        found = []
        for shape in self.shapes:
            alone = tuple((batch,) for batch in self.batches)
            layout = (_ABREAST_TWICE if twice else _ABREAST).get(shape, alone)
            for batches in layout:
                kept = tuple(batch for batch in batches if batch in self.batches)
                if kept:
                    found.append(Lane(shape, kept))
        return found

    def cases(self, lane: Lane) -> list[tuple[str, int, float]]:
        """Return what a lane prepares, what matters most first: spec, batch, temperature."""
        return [
            (spec, batch, temperature)
            for temperature in self.temperatures
            for batch in lane.batches
            for spec in self.specs
        ]

    @property
    def work(self) -> str:
        """A digest of all that the figures depend on, the code and the machine left out."""
        return digest(self.prompts, self.tokens, self.length)


def case_name(shape: str, case: tuple[str, int, float]) -> str:
    """Return what a case's figures are called, their kind left out."""
    spec, batch, temperature = case
    return f"{shape}/{spec}/b{batch}/t{temperature:g}"


def prompts_of(path: Path) -> tuple[str, ...]:
    """Return the first turns of a JSONL file of ``{"turns": [...]}``, spread over the whole of it.

    Raises:
        ValueError: a line is something else, or there is none.
        OSError: it cannot be read.
    """
    texts: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["turns"][0]))
        except (ValueError, LookupError, TypeError):
            message = f'{path}:{number}: should be an object like {{"turns": ["the prompt"]}}'
            raise ValueError(message) from None
    if not texts:
        raise ValueError(f"{path} holds no prompt")
    return spread(texts)


def spread(texts: Sequence[str]) -> tuple[str, ...]:
    """Return at most so many texts as a run uses, evenly from the first to the last."""
    if len(texts) <= _TEXTS:
        return tuple(texts)
    return tuple(texts[place * len(texts) // _TEXTS] for place in range(_TEXTS))
