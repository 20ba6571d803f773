"""Ends what a process has started, and removes its files, if it is killed; knows not what it is."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["guarded"]

_MARK = "EAGLE_GUARDED"
# Runs beside the process until its end of a pipe is closed: with a word, or by its death. Whatever
# was started meanwhile, compilers by compilers too, has inherited the mark.
_GUARD = """
import sys
mark, folder = sys.argv[1:]
if not sys.stdin.buffer.read():
    import shutil, psutil
    for _ in range(3):
        for process in psutil.process_iter():
            try:
                if process.environ().get("EAGLE_GUARDED") == mark:
                    process.kill()
            except psutil.Error:
                pass
    shutil.rmtree(folder, ignore_errors=True)
"""


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Let no process that is started within outlive this one if it is killed, nor *folder*.

    The folder is also where those processes keep what they need for a moment (``TMPDIR``).

    Args:
        folder: removed if this process ends within, by whatever signal.
    """
    mark = uuid.uuid4().hex
    guard = subprocess.Popen(
        [sys.executable, "-c", _GUARD, mark, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # not ended by the signal that ends this process
    )
    kept = {name: os.environ.get(name) for name in (_MARK, "TMPDIR")}
    os.environ.update({_MARK: mark, "TMPDIR": str(folder)})
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        with suppress(OSError):  # it was killed as well
            guard.communicate(b"done")
