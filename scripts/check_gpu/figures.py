"""Figures by name, what each kind of them means, and the file that keeps them; measures nothing.

A figure's name is a path, its last word the kind: ``135m/eagle-reference/b8/t0/cycle_ms``.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Kind", "Record", "digest", "kind_of", "middle", "write_whole"]


@dataclass(frozen=True)
class Kind:
    """What a figure says.

    Attributes:
        less: whether less is better.
        floor: relative difference that two runs on machines of one model show without a reason.
        side: the same for two checkouts that take turns in one run.
        placed: whether sample number i is of the same prompts and seeds in every run, so that
            samples are compared one by one.
    """

    less: bool
    floor: float
    side: float
    placed: bool = False


KINDS = {
    "cycle_ms": Kind(less=True, floor=0.02, side=0.005),
    "pass_ms": Kind(less=True, floor=0.02, side=0.01),
    "draft_ms": Kind(less=True, floor=0.03, side=0.01),
    "head_ms": Kind(less=True, floor=0.03, side=0.01),
    "read_ms": Kind(less=True, floor=0.10, side=0.03),
    "tokens_s": Kind(less=False, floor=0.03, side=0.01, placed=True),
    "tau": Kind(less=False, floor=0.01, side=0.01, placed=True),
    "first_s": Kind(less=True, floor=0.15, side=0.05),
    "end_s": Kind(less=True, floor=0.15, side=0.05),
}
"""By the last word of a name: milliseconds of a cycle, of the target's pass and of the drafts in
it, of the LM head alone and of reading one prompt; new tokens per second; tokens committed per
verification; seconds from a command to its first text and to its end."""


def kind_of(name: str) -> Kind:
    """Return the kind of a figure."""
    return KINDS[name.rpartition("/")[2]]


def middle(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile of at least one sample."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high


def digest(*parts: object) -> str:
    """Return a short name for what was asked of a run: equal only where its work was equal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclass
class Record:
    """What one run found on one machine with one checkout.

    Attributes:
        hardware: model of the device.
        versions: of Python and packages.
        commit: of the checkout, as far as it is known.
        work: digest of the prompts and of what was asked of them; tau and times of other work are
            not compared.
        figures: samples by name.
        missing: why something that was asked for is not there, by name.
        tests: how many passed and were skipped, and the names of others; empty without tests.
        context: what was read along the way and is not judged, such as the read bandwidth.
    """

    hardware: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    work: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    tests: dict[str, Any] = field(default_factory=dict)
    context: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, *samples: float) -> None:
        """Add samples to a figure, rounded to what a table or a comparison could need."""
        kind_of(name)  # a kind that nobody described should fail where it is made
        self.figures.setdefault(name, []).extend(float(f"{sample:.5g}") for sample in samples)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.figures.items())]
        rest = json.dumps({k: v for k, v in asdict(self).items() if k != "figures"}, indent=1)
        text = rest.removesuffix("\n}") + ',\n "figures": {\n' + ",\n".join(lines) + "\n }\n}\n"
        write_whole(path, text)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return what a file holds, however little; what this version does not know is left out.

        Raises:
            ValueError: it is not such a file.
            OSError: it cannot be read.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("figures", {}), dict):
            raise ValueError(f"{path} should be an object with the figures by name")
        record = cls(**{each.name: data[each.name] for each in fields(cls) if each.name in data})
        record.figures = {
            name: [float(sample) for sample in samples]
            for name, samples in record.figures.items()
            if name.rpartition("/")[2] in KINDS and samples
        }
        return record


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
