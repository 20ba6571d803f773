"""What was taken, and the differences that follow from it, in words; measures nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from measure_serve.crowd import Answers

__all__ = [
    "First",
    "Whole",
    "batch_lines",
    "first_lines",
    "interval",
    "many_json",
    "many_lines",
    "of_neighbours",
    "spread",
]


@dataclass(frozen=True)
class First:
    """One request, up to its first token.

    Attributes:
        seconds: from asking to the first token's text, as whoever asked saw it.
        within: of these, from when the engine began to read the prompt to when it had the token.
    """

    seconds: float
    within: float = 0.0

    @property
    def outside(self) -> float:
        """What was not the engine's pass: template, tokenizer and all waking included."""
        return self.seconds - self.within


@dataclass(frozen=True)
class Whole:
    """A batch of requests, to the last token.

    Attributes:
        seconds: by the clock.
        spent: processor time of the process with the engine and the servers.
        asking: processor time of the clients, on the same cores; 0 where there are none.
        serving: of `spent`, what the servers' own threads took.
    """

    seconds: float
    spent: float
    asking: float = 0.0
    serving: float = 0.0


def spread(values: Sequence[float], form: str, unit: str) -> str:
    """Return the median and the quartiles of some values.

    >>> spread([1.0, 2.0, 3.0], "+.1f", " ms")
    '+2.0 ms (+1.0 to +3.0)'
    """
    low, _, high = quantiles(values)
    return f"{median(values):{form}}{unit} ({low:{form}} to {high:{form}})"


def interval(values: Sequence[float], times: int = 4000) -> tuple[float, float]:
    """Return what holds the median of such values in 95 of 100 cases, by drawing from them again.

    >>> interval([2.0] * 10)
    (2.0, 2.0)
    """
    draw = random.Random(0).choices
    drawn = sorted(median(draw(values, k=len(values))) for _ in range(times))
    return drawn[round(0.025 * times)], drawn[round(0.975 * times) - 1]


def first_lines(found: Mapping[str, Sequence[First]], base: str, floor: str) -> list[str]:
    """Return what is said of first tokens.

    Args:
        found: requests by each way, in rounds.
        base: the way that others are held against.
        floor: the one that has no engine.
    """
    engine, rounds = found[base], len(found[base])
    lines = [
        f"batch 1, {rounds} rounds: first token by {base} "
        f"{spread([one.seconds * 1e3 for one in engine], '.2f', ' ms')}, of which outside its pass "
        f"{spread([one.outside * 1e3 for one in engine], '.2f', ' ms')}"
    ]
    for name, others in found.items():
        if name in (base, floor):
            continue
        pairs = list(zip(others, engine, strict=True))
        outside = [(one.outside - other.outside) * 1e3 for one, other in pairs]
        seconds = [(one.seconds - other.seconds) * 1e3 for one, other in pairs]
        lines.append(
            f"    {name}: outside the pass {spread(outside, '+.2f', ' ms')}; "
            f"all in all {spread(seconds, '+.2f', ' ms')}"
        )
    hello = [one.seconds * 1e3 for one in found[floor]]
    lines.append(f"    {floor}: {spread(hello, '.2f', ' ms')} from asking to its word")
    return lines


def batch_lines(found: Mapping[str, Sequence[Whole]], base: str, tokens: int) -> list[str]:
    """Return what is said of batches of so many tokens in all, likewise."""
    engine = found[base]
    size = f"{tokens} tokens at once, {len(engine)} rounds"
    lines = [f"{size}: {base} {tokens / median(one.seconds for one in engine):.1f} tokens/s"]
    for name, others in found.items():
        if name == base:
            continue
        pairs = list(zip(others, engine, strict=True))
        lost = [(1 - other.seconds / one.seconds) * 100 for one, other in pairs]
        spent = [(one.spent / other.spent - 1) * 100 for one, other in pairs]
        asking = [one.asking / other.spent * 100 for one, other in pairs]
        serving = [one.serving / one.spent * 100 for one in others]
        lines += [
            f"    {name}: {tokens / median(one.seconds for one in others):.1f} tokens/s, lost "
            f"{spread(lost, '.2f', ' %')}, median {_held(lost)}",
            f"        processor time {spread(spent, '+.2f', ' %')}, median {_held(spent)}; "
            f"of it, the server's threads {spread(serving, '.2f', ' %')}; the clients' beside it "
            f"{median(asking):.2f} %",
        ]
    return lines


def _held(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"within {low:+.2f} to {high:+.2f} % (95 %)"


def of_neighbours(found: Sequence[Answers], base: Sequence[Answers]) -> list[float]:
    """Return the rates of rounds over the mean of those before and behind each of them.

    Args:
        found: rounds; what comes behind the last one of the base is left out.
        base: those that they are held against, one more.
    """
    pairs = zip(found[: len(base) - 1], base[:-1], base[1:], strict=True)
    return [2 * one.rate / (before.rate + behind.rate) for one, before, behind in pairs]


def many_lines(
    found: Mapping[str, Sequence[Answers]], bases: Sequence[str], about: Mapping[str, Any]
) -> list[str]:
    """Return a table of what many clients got.

    Args:
        found: rounds by each way; `bases` have one more than the others.
        bases: the ways that those behind them are held against; none where there is no engine.
        about: what was asked.
    """
    clients = about["clients"]
    heads = [
        "",
        "rounds",
        "tokens/s",
        *(f"of {base}" for base in bases),
        "tau",
        "ms a cycle, prompts' passes included",
        f"answers in a cycle, of {clients}",
        f"first token, median ms: the {clients} asked for at once",
        "later ones",
    ]
    lines = [
        f"{clients} clients, {about['each']} prompts each, {about['tokens']} new tokens, "
        f"temperature {about['temperature']:g}; median (least to most) of rounds",
        _row(heads),
        "|" + "---|" * len(heads),
    ]
    for name, some in found.items():
        cells = [
            name,
            str(len(some)),
            _ranged([one.rate for one in some], ",.0f"),
            *(_ranged(share, ".3f") for share in _shares(name, found, bases)),
            f"{median(one.tau for one in some):.2f}",
            _ranged([one.seconds / one.cycles * 1e3 for one in some if one.cycles], ".2f"),
            _ranged([one.steps / one.cycles for one in some if one.cycles], ".1f"),
            _ranged([median(one.firsts[:clients]) * 1e3 for one in some if one.firsts], ".0f"),
            _ranged([median(late) * 1e3 for one in some if (late := one.firsts[clients:])], ".0f"),
        ]
        lines.append(_row(cells))
    return lines


def many_json(
    found: Mapping[str, Sequence[Answers]], bases: Sequence[str], about: Mapping[str, Any]
) -> str:
    """Return what many clients got, round by round, as JSON; see `many_lines`."""
    ways = {
        name: {
            "rounds": [{**asdict(one), "rate": one.rate, "tau": one.tau} for one in some],
            "of_neighbours": {
                base: share
                for base, share in zip(bases, _shares(name, found, bases), strict=True)
                if share
            },
        }
        for name, some in found.items()
    }
    return json.dumps({**about, "bases": list(bases), "ways": ways}, indent=1)


def _shares(
    name: str, found: Mapping[str, Sequence[Answers]], bases: Sequence[str]
) -> list[list[float]]:
    """Return a way's rounds over their neighbours by each base; none of those from itself on."""
    before = bases[: bases.index(name)] if name in bases else bases
    return [of_neighbours(found[name], found[base]) if base in before else [] for base in bases]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ranged(values: Sequence[float], form: str) -> str:
    """Return the median of some values and their range; nothing where there are none."""
    if not values:
        return ""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
