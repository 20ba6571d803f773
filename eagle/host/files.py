"""Files that are there whole or not at all; knows paths and nothing of what is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "write_text"]


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside the one that is meant, which what was written there replaces at the end.

    If anything fails, the old file stays and nothing is left beside it. A link stays too, and what
    it leads to is replaced. Devices and pipes cannot be replaced: they are written to themselves.

    Args:
        path: the file.
        shared: other processes may write it at the same time. Otherwise what a process that was
            killed has left is written over by the next one.

    Raises:
        OSError: the file cannot be written; it names the path that is meant.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file() and not final.is_dir():
        yield final
        return
    mark = f".{os.getpid()}" if shared else ""
    staged = final.with_name(f".{final.name}{mark}.writing")
    try:
        yield staged
        os.replace(staged, final)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a file of text in UTF-8, whole or not at all; see `replacing`.

    Raises:
        OSError: it cannot be written; it names the path.
    """
    with replacing(path, shared=shared) as place:
        place.write_text(text, encoding="utf-8")
