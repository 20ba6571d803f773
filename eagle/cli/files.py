"""Files that a command is going to write; knows where, not what."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_files", "make_folder"]


def check_files(*files: Path | None) -> None:
    """Refuse, before anything is measured, files that could not be written afterwards.

    Raises:
        RequestError: one is a folder, its folder is missing or cannot be written to, or the same
            file is to be written twice.
    """
    from eagle.errors import RequestError

    seen: set[str] = set()
    for file in files:
        if file is None:
            continue
        place = os.path.realpath(file)
        if place in seen and (file.is_file() or not file.exists()):  # pipes and devices go on
            raise RequestError(f"{file} is to be written twice; give two files")
        seen.add(place)
        if file.is_dir() or not file.parent.is_dir():
            raise RequestError(
                f"{file} cannot be written: it is a folder, or its folder is missing"
            )
        if not os.access(file.parent, os.W_OK):
            raise RequestError(f"{file} cannot be written: its folder is not yours to write to")


def make_folder(file: Path) -> None:
    """Make the folder of a file that is going to be written, if there is none.

    Raises:
        RequestError: it cannot be made.
    """
    from eagle.errors import RequestError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"{file} cannot be written, since its folder cannot be made: {error.strerror}"
        ) from error
