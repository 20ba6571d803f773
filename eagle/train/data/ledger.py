"""Lines of JSON that are never lost and never doubled, however the process that writes them ends.

Knows files and lines, not what they say.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """A file of JSON lines that is only ever added to; use it as a context manager.

    A line is there as soon as `add` returns, whatever becomes of the process. One that was cut
    off, since the process ended or the disk was full, is removed when the file is next opened.

    Args:
        path: the file; it is made if there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Unbuffered: what is added is the system's at once.
        self._file = path.open("ab", buffering=0)
        size = self._whole()
        if size < self._file.tell():
            os.truncate(path, size)

    def _whole(self) -> int:
        """Return the size of the file up to its last end of line."""
        size = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    size += len(line)
        return size

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: the disk is full, say.
        """
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def __iter__(self) -> Iterator[Any]:
        """Yield the lines that are there.

        Raises:
            ValueError: one of them is no JSON.
        """
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)
