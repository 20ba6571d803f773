"""The figures of a run for TensorBoard; knows its writer, and that it writes in another thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eagle.errors import EagleError, SpecError

__all__ = ["Board", "explained", "opened", "require_tensorboard"]

_PATIENCE = 1.0  # seconds for a thread to end that has failed


def require_tensorboard() -> Any:
    """Return TensorBoard's writer.

    Raises:
        SpecError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SpecError(
            "tensorboard: true needs TensorBoard, which is not installed; run "
            "pip install 'eagle-decoding[tensorboard]', or leave it out"
        ) from error
    return SummaryWriter


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of an error of the file system where it was, and what to do.

    Raises:
        EagleError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise EagleError(
            f"the run's log could not be written to {path}: {error.strerror or error}. Make room "
            "and run again with --resume, which goes on from the last checkpoint"
        ) from error


def opened(folder: Path, step: int, wanted: bool | str) -> Board | None:
    """Return a board where one is wanted; ``auto``: where TensorBoard is installed."""
    if not wanted or (wanted == "auto" and find_spec("tensorboard") is None):
        return None
    return Board(folder, step)


class Board:
    """A folder of TensorBoard's files.

    Its thread keeps what fails in it, and the next call raises that. Until it is closed, nothing
    is printed of it besides: a traceback would hide how the run itself ended.

    Args:
        folder: where its files lie.
        step: what a killed run wrote behind it is hidden.

    Raises:
        SpecError: TensorBoard is not installed.
        EagleError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, step: int) -> None:
        writer = require_tensorboard()
        self._folder = folder
        self._others, self._own = set(threading.enumerate()), set[threading.Thread]()
        self._before = threading.excepthook
        threading.excepthook = self._thrown
        try:
            with explained(folder):
                self._writer = writer(str(folder), purge_step=step + 1 if step else None)
        except BaseException:
            self._part()
            raise
        self._own = set(threading.enumerate()) - self._others

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add every number of a line of the log.

        Raises:
            EagleError: it, or a line before it, cannot be written.
        """
        with explained(self._folder):
            for name, value in _scalars(kind, values):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left.

        Raises:
            EagleError: it cannot be written.
        """
        try:
            with explained(self._folder):
                self._writer.close()
        finally:
            self._part()

    def _thrown(self, thrown: Any) -> None:
        """Take the place of `threading.excepthook`."""
        ours = thrown.thread in self._own if self._own else thrown.thread not in self._others
        if not (ours and isinstance(thrown.exc_value, OSError)):
            self._before(thrown)

    def _part(self) -> None:
        """Leave the hook as it was, once no thread of the writer can call it any more."""
        for thread in self._own or set(threading.enumerate()) - self._others:
            thread.join(_PATIENCE)
        threading.excepthook = self._before


def _scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield every number of a line, by the path to it; levels of a list are counted from 0."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _scalars(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _scalars(f"{name}/{index}", inner)
    elif isinstance(value, int | float):
        yield name, value
