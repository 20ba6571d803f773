"""What a run tells: a progress bar on stderr and one JSON object a line in a file.

Knows numbers and their names, not where they come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Journal", "say"]


def say(message: str) -> None:
    """Print a line on stderr."""
    Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)


class Journal:
    """The log of a run; use it as a context manager.

    Args:
        path: the file, one JSON object a line, each with `kind` and `step`.
        step: steps that are done already; lines behind them, of a run that was killed after its
            last checkpoint, are taken out, so that the file reads as if it had never stopped.
        total: steps of the whole run.
    """

    def __init__(self, path: Path, step: int, total: int) -> None:
        self._path = path
        kept = [line for line in self._lines() if line["step"] <= step] if step else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=total, completed=step)

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        lines = []
        for line in self._path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:  # cut off when the process was killed
                continue
        return lines

    def __enter__(self) -> Journal:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a line to the file."""
        with self._path.open("a") as file:
            line = {"kind": kind, "step": step, **_finite(values)}
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def show(self, step: int, loss: float, accuracy: float, rate: float) -> None:
        """Move the bar.

        Args:
            step: steps done.
            loss: of the last steps.
            accuracy: of the last steps.
            rate: tokens per second.
        """
        text = f"loss {loss:.3f} acc {accuracy:.3f} {rate / 1000:.1f}k tok/s"
        self._progress.update(self._task, completed=step, description=text)
        if not self._progress.console.is_terminal:
            # Without a terminal the bar is not drawn; a line now and then is.
            self.say(f"step {step} {text}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(message, markup=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    """Return a value with null for every NaN, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
