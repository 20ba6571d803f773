"""What the logs of runs say: curves by name; draws nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eagle.errors import DataError

__all__ = ["Axis", "Curve", "Run", "read_run", "run_names"]

Axis = Literal["steps", "tokens", "minutes"]
"""What a curve is drawn against; tokens are all that were read, with a loss or without."""

_TRAIN = ("loss", "feature", "token", "accuracy")


@dataclass(frozen=True)
class Curve:
    """Figures against steps.

    Attributes:
        steps: int64 ``[n]``.
        values: float64 ``[n]``, or ``[n, levels]``; NaN where there was none.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What the log of a run says.

    Attributes:
        name: what it is called.
        train: `loss`, `feature`, `token` and `accuracy`, means over the steps since the point
            before.
        seconds: trained, evaluations not counted.
        tau: by tree, then by set of prompts.
        n_alpha: by set of prompts, one column for each level of the chain.
        tokens: read so far, or None where the log does not say.
    """

    name: str
    train: Mapping[str, Curve]
    seconds: Curve
    tau: Mapping[str, Mapping[str, Curve]]
    n_alpha: Mapping[str, Curve]
    tokens: Curve | None

    @property
    def sets(self) -> list[str]:
        """The sets of prompts that it was measured on."""
        return _names((*self.tau.values(), self.n_alpha))

    def only(self, sets: Sequence[str]) -> Run:
        """Return the same with the figures of some sets of prompts only.

        Raises:
            DataError: it was measured on none of them.
        """
        if not set(sets) & set(self.sets):
            raise DataError(
                f"{self.name} was not measured on {' or '.join(map(repr, sets))}; there is "
                f"{', '.join(self.sets) or 'no evaluation'}"
            )
        tau = {tree: _chosen(by_set, sets) for tree, by_set in self.tau.items()}
        return replace(self, tau=tau, n_alpha=_chosen(self.n_alpha, sets))

    def along(self, steps: NDArray[np.int64], axis: Axis) -> NDArray[np.float64]:
        """Return where steps lie on an axis: steps, millions of tokens, or minutes of training.

        Raises:
            DataError: the log does not say.
        """
        if axis == "steps":
            return steps.astype(np.float64)
        if axis == "tokens" and self.tokens is None:
            raise DataError(f"the log of {self.name} does not count tokens; use --against steps")
        scale = self.tokens if axis == "tokens" and self.tokens else self.seconds
        found = np.interp(steps, [0, *scale.steps], [0.0, *scale.values])
        out: NDArray[np.float64] = found / (1e6 if axis == "tokens" else 60.0)
        return out


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read the log of a run.

    Args:
        folder: of the run, or its ``log.jsonl``.
        name: what to call it; by default as the folder is called.

    Raises:
        DataError: there is no log, it is damaged, or nothing was trained yet.
    """
    path = folder if folder.is_file() else folder / "log.jsonl"
    lines = _lines(path)
    train = [line for line in lines if line.get("kind") == "train"]
    measured = [line for line in lines if line.get("kind") == "evaluation"]
    if not train:
        raise DataError(f"{path} has no line of training yet")
    try:
        trees = _names(line["tau"] for line in measured)
        return Run(
            name=name or path.resolve().parent.name,
            train={key: _curve(train, key) for key in _TRAIN},
            seconds=_curve(train, "seconds"),
            tau={
                tree: {
                    prompts: _curve(measured, "tau", tree, prompts)
                    for prompts in _names(line["tau"].get(tree, {}) for line in measured)
                }
                for tree in trees
            },
            n_alpha={
                prompts: _curve(measured, "n_alpha", prompts)
                for prompts in _names(line["n_alpha"] for line in measured)
            },
            tokens=_tokens(train),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path} is not the log of a training run: {type(error).__name__}: {error}"
        ) from error


def run_names(folders: Iterable[Path]) -> list[str]:
    """Return names that tell runs apart: as much of their paths' ends as that takes.

    >>> run_names([Path("runs/a"), Path("runs/b")])
    ['a', 'b']
    >>> run_names([Path("one/out"), Path("two/out")])
    ['one/out', 'two/out']
    """
    paths = [(path.parent if path.suffix == ".jsonl" else path).resolve() for path in folders]
    longest = max((len(path.parts) for path in paths), default=0)
    names: list[str] = []
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"there is no log {path}; give the folder of a run") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            # The last one may be cut off: the run goes on, or was killed.
            if number < len(texts):
                raise DataError(f"{path}:{number}: not a line of JSON: {error}") from error
            line = None
        if isinstance(line, dict):
            lines.append(line)
        elif line is not None:
            raise DataError(f"{path}:{number}: not a line of a training run's log")
    return lines


def _chosen(found: Mapping[str, Curve], sets: Sequence[str]) -> dict[str, Curve]:
    return {name: curve for name, curve in found.items() if name in sets}


def _names(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all keys, in the order in which they first come."""
    return list(dict.fromkeys(key for one in found for key in one))


def _curve(lines: Iterable[Mapping[str, Any]], *keys: str) -> Curve:
    """Return what stands under a path of keys, from the lines that have it."""
    steps, values = [], []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            steps.append(line["step"])
            values.append(value)
    if not steps and keys[0] not in ("tau", "n_alpha"):
        raise KeyError(keys[0])
    if any(isinstance(value, list) for value in values):  # a resumed run may have more levels
        longest = max(map(len, values))
        values = [[*value, *[None] * (longest - len(value))] for value in values]
    # JSON has no NaN: it is null there, and becomes NaN again.
    return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))


def _tokens(train: list[dict[str, Any]]) -> Curve | None:
    """Return how many tokens had been read at each line, if every line counts them."""
    if not all("tokens_per_step" in line for line in train):
        return None
    steps = np.array([line["step"] for line in train], dtype=np.int64)
    each = np.array([line["tokens_per_step"] for line in train], dtype=np.float64)
    return Curve(steps, np.cumsum(np.diff(steps, prepend=0) * each))
