"""Which figures got worse by more than their spread; knows figures, no machine and no table."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from check_gpu.figures import Record, kind_of, middle

_LONE = 0.05  # a relative change that a single sample is not believed
_STUDENT = (63.7, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25)
"""Student's t by degrees of freedom from 1 on, at 99 %: a run compares a hundred figures."""

__all__ = ["Verdict", "against_record", "beside", "incomparable"]


@dataclass(frozen=True)
class Verdict:
    """One figure, held against another.

    Attributes:
        name: of the figure.
        word: ``worse``, ``same``, ``better``; ``new`` or ``gone`` where one of the two is missing;
            ``apart`` where both are there and cannot be compared.
        now: its median; None where it is missing.
        then: the median that it is held against, likewise.
        change: relative, above 0 where the figure grew; None where there is nothing to compare.
        spread: a change of that size or less says nothing.
    """

    name: str
    word: str
    now: float | None
    then: float | None
    change: float | None = None
    spread: float | None = None


def incomparable(now: Record, then: Record) -> str:
    """Return why two runs cannot be held against each other, or an empty string."""
    if now.hardware != then.hardware:
        return f"this is {now.hardware}, the recorded figures are of {then.hardware}"
    if now.work != then.work:
        return "the recorded figures are of other prompts or settings"
    return ""


def against_record(now: Record, then: Record) -> list[Verdict]:
    """Return a verdict for every figure of two runs, in the order of their names."""
    return _verdicts(now, then, apart=bool(incomparable(now, then)), turns=False)


def beside(here: Record, other: Record) -> list[Verdict]:
    """Return a verdict for every figure of two checkouts that took turns in one run."""
    return _verdicts(here, other, apart=False, turns=True)


def _verdicts(now: Record, then: Record, *, apart: bool, turns: bool) -> list[Verdict]:
    return [
        _verdict(name, now.figures.get(name), then.figures.get(name), apart=apart, turns=turns)
        for name in sorted({*now.figures, *then.figures}, key=_in_order)
    ]


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key by which numbers within names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _verdict(
    name: str,
    now: Sequence[float] | None,
    then: Sequence[float] | None,
    *,
    apart: bool,
    turns: bool,
) -> Verdict:
    ours = middle(now)[1] if now else None
    theirs = middle(then)[1] if then else None
    if not now or not then:
        return Verdict(name, "new" if now else "gone", ours, theirs)
    if apart:
        return Verdict(name, "apart", ours, theirs)
    kind = kind_of(name)
    floor = kind.side if turns else kind.floor
    change, spread = _placed(now, then) if kind.placed or turns else _loose(now, then)
    spread = max(spread, floor)
    harm = change if kind.less else -change
    word = "worse" if harm > spread else "better" if harm < -spread else "same"
    return Verdict(name, word, ours, theirs, change, spread)


def _loose(now: Sequence[float], then: Sequence[float]) -> tuple[float, float]:
    """Return the change between medians, and half of both interquartile ranges together.

    A larger change means that the two ranges, laid around their medians, do not touch.
    """
    spread = _LONE if len(now) == 1 or len(then) == 1 else 0.0
    for samples in (now, then):
        low, median, high = middle(samples)
        spread += (high - low) / 2 / median if median else 0.0
    before = middle(then)[1]
    return (middle(now)[1] / before - 1 if before else 0.0), spread


def _placed(now: Sequence[float], then: Sequence[float]) -> tuple[float, float]:
    """Return the median change from sample to sample, and how far their mean may be off.

    Samples that only one of the two has are left out: an interrupted run has fewer.
    """
    changes = [a / b - 1 for a, b in zip(now, then, strict=False) if b]
    if len(changes) < 2:
        return (changes[0] if changes else 0.0), _LONE
    error = statistics.stdev(changes) / sqrt(len(changes))
    return statistics.median(changes), error * _STUDENT[min(len(changes), len(_STUDENT) + 1) - 2]
