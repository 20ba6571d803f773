"""What was found of every run, in one file that is whole at any moment; finds nothing itself."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from check_gpu.figures import write_whole

__all__ = ["Found", "Results", "curve_of", "merged"]


@dataclass
class Found:
    """One head.

    Attributes:
        asked: digest of what decides its weights.
        state: ``finished``, ``stopped`` (its time was up), ``failed`` or ``not begun``.
        why: of the latter three, if there is more to say.
        config: that it was trained by.
        overrides: settings beside it.
        variant: see `train_series.plan.Training`.
        series: likewise.
        steps: taken.
        tokens: trained on.
        tokens_per_second: median of the log's lines, the first left out, which has compiling in it;
            with quartiles, as three numbers.
        beside: the most processes that shared the machine meanwhile, itself included.
        loss: mean over the last lines of the log.
        accuracy: how often the first candidate is the target's, level by level, on the training
            text: likewise.
        tau: by tree, then by kind of text.
        right: how often the first candidate is the target's, level by level, at every position of
            the answers to all prompts.
        positions: how many there are.
        heldout_tau: by tree, of held-out conversations, by training's own evaluation.
        n_alpha: on the same, on a chain; None where no cycle came so far.
        bytes: of the head's file.
        hardware: model of the device.
        versions: of Python and packages.
        commit: of the checkout.
    """

    asked: str = ""
    state: str = "not begun"
    why: str = ""
    config: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    series: str | None = None
    steps: int = 0
    tokens: int = 0
    tokens_per_second: list[float] = field(default_factory=list)
    beside: int = 1
    loss: float | None = None
    accuracy: list[float] = field(default_factory=list)
    tau: dict[str, dict[str, float]] = field(default_factory=dict)
    right: list[float] = field(default_factory=list)
    positions: int = 0
    heldout_tau: dict[str, float] = field(default_factory=dict)
    n_alpha: list[float | None] = field(default_factory=list)
    bytes: int = 0
    hardware: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""

    @property
    def finished(self) -> bool:
        """Whether all of it is known."""
        return self.state == "finished"

    def mean_tau(self, tree: str | None = None) -> float:
        """Return tau of a tree, by default the first, as the mean over kinds of text."""
        by_set = next(iter(self.tau.values())) if tree is None else self.tau[tree]
        return statistics.fmean(by_set.values())


@dataclass
class Results:
    """All that a series found.

    Attributes:
        about: what it is to show.
        measured: digest of what every head was asked.
        asked: the same for people: prompts of each kind, tokens of an answer.
        runs: by name, the trained ones.
        others: heads that were measured and not trained, likewise.
    """

    about: str
    measured: str
    asked: str
    runs: dict[str, Found] = field(default_factory=dict)
    others: dict[str, Found] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what a file holds.

        Raises:
            ValueError: it is not such a file.
            OSError: it cannot be read.
        """
        try:
            found = TypeAdapter(cls).validate_json(path.read_bytes(), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(
                f"{path} holds no results of a series of trainings: {where}{first['msg']}"
            ) from error
        if problem := found.problem():
            raise ValueError(f"{path} holds no results of a series of trainings: {problem}")
        return found

    def problem(self) -> str | None:
        """Return what does not go together in heads that are finished, or None."""
        finished = {n: one for n, one in (self.runs | self.others).items() if one.finished}
        kinds = {name: {tree: sorted(by) for tree, by in one.tau.items()}
                 for name, one in finished.items()}  # fmt: skip
        for name, one in finished.items():
            numbers = [tau for by in one.tau.values() for tau in by.values()]
            if not (numbers and all(one.tau.values()) and all(map(math.isfinite, numbers))):
                return f"{name} is finished, but has no tau"
            if len(one.tokens_per_second) not in (0, 3):
                return f"{name} has speeds that are no median with quartiles"
            other = next(iter(kinds))
            if kinds[name] != kinds[other]:
                return f"{name} and {other} are of different trees or kinds of text"
        return None


def merged(files: Iterable[Path]) -> Results:
    """Return the results of several files as one; of a run in two, the later one that is finished.

    Raises:
        ValueError: one is no such file, or their heads were asked different things.
        OSError: one cannot be read.
    """
    whole, first = Results("", "", ""), None
    for path in files:
        one = Results.read(path)
        if first is None:
            first, whole = path, Results(one.about, one.measured, one.asked)
        if one.about not in whole.about.split("; "):
            whole.about += f"; {one.about}"
        if one.measured != whole.measured:
            raise ValueError(
                f"{path} and {first} hold figures on different prompts or trees, which do not "
                "compare; report them apart"
            )
        for ours, theirs in ((whole.runs, one.runs), (whole.others, one.others)):
            for name, found in theirs.items():
                if found.finished or name not in ours:
                    ours[name] = found
    if problem := whole.problem():
        raise ValueError(f"these results cannot be reported together: {problem}")
    return whole


def curve_of(log: Path) -> dict[str, Any]:
    """Return what the log of a training says: steps, speed, and the figures of its last lines.

    Raises:
        ValueError: it cannot be made out.
    """
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        train = [line for line in lines if line["kind"] == "train"]
        last = train[-max(1, len(train) // 10) :]
        speeds = [line["tokens_per_second"] for line in train[1:] or train]
        middle = (
            [round(speed) for speed in statistics.quantiles(speeds, n=4, method="inclusive")]
            if len(speeds) > 1
            else [round(speeds[0])] * 3
        )
        levels = zip(*(line["accuracy_by_level"] for line in last), strict=True)
        return {
            "steps": train[-1]["step"],
            "tokens_per_second": middle,
            "loss": round(statistics.fmean(line["loss"] for line in last), 4),
            "accuracy": [round(statistics.fmean(level), 4) for level in levels],
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{log} is no log of a training") from error
