"""What a run tells: a progress bar on stderr, one JSON object a line in a file, and TensorBoard.

Knows numbers and their names, not where they come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eagle.errors import DataError, EagleError
from eagle.host import write_text
from eagle.train.run.board import explained, opened

__all__ = ["Journal", "read_log", "say"]


def say(message: str) -> None:
    """Print a line on stderr."""
    console = Console(stderr=True, highlight=False, emoji=False)
    console.print(message, markup=False, soft_wrap=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, but for a last one that was cut off; none without a file.

    Raises:
        DataError: it cannot be read, or a line is not one of a log.
    """
    try:
        rows = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    lines = []
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
            if not isinstance(line["kind"], str) or type(line["step"]) is not int:
                raise TypeError("it has no kind and step")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(rows):  # cut off when the process was killed
                continue
            raise DataError(
                f"{path}:{number}: not a line of a run's log; move the file away to go on without"
            ) from error
        lines.append(line)
    return lines


class Journal:
    """The log of a run; use it as a context manager.

    Args:
        path: the file, one JSON object a line, each with `kind` and `step`.
        step: steps that are done already; lines behind them, of a run that was killed after its
            last checkpoint, are taken out, so that the file reads as if it had never stopped.
        total: steps of the whole run.
        tensorboard: write the same figures for TensorBoard, into a folder ``tensorboard`` beside
            the file; ``auto``: where it is installed.
    """

    def __init__(
        self, path: Path, step: int, total: int, *, tensorboard: bool | str = False
    ) -> None:
        self._path = path
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._written = {(line["kind"], line["step"]) for line in kept}
        self._board = opened(path.parent / "tensorboard", step, tensorboard)
        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=total, completed=step)

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
        if self._board is not None:
            # What already went wrong is what is to be told.
            with suppress(EagleError) if error else nullcontext():
                self._board.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a line to the file, unless the run wrote it before it was resumed at that step.

        Raises:
            EagleError: it cannot be written (a full disk, say).
        """
        if (kind, step) in self._written:
            return
        with explained(self._path), self._path.open("a") as file:
            line = {"kind": kind, "step": step, **_finite(values)}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board is not None:
            self._board.write(kind, step, values)

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
