"""Files that are there whole or not at all; knows paths and nothing of what is written."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "FULL_DISK",
    "disk_error",
    "expanded",
    "is_sealed",
    "is_there",
    "replacing",
    "seal",
    "write_text",
]

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of the errors that say that there is no room."""

_DIGEST = 64  # hexadecimal digits of SHA-256


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
    itself = final.exists() and not final.is_file() and not final.is_dir()
    mark = f".{os.getpid()}" if shared else ""
    staged = final if itself else final.with_name(f".{final.name}{mark}.writing")
    try:
        yield staged
        if not itself:
            os.replace(staged, final)
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        raise OSError(found.errno, found.strerror or str(found), str(path)) from error
    finally:
        if not itself:
            with suppress(OSError):
                staged.unlink(missing_ok=True)


def disk_error(error: BaseException) -> OSError | None:
    """Return the error of the file system that another comes of, or None if it comes of none.

    Libraries in other languages (safetensors, tokenizers, compilers) only tell of it in words.
    """
    if isinstance(error, OSError):
        return error
    said = str(error)
    if number := re.search(r"\(os error (\d+)\)", said):
        code = int(number[1])
        return OSError(code, os.strerror(code))
    full = next((code for code in FULL_DISK if os.strerror(code) in said), None)
    return None if full is None else OSError(full, os.strerror(full))


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a file of text in UTF-8, whole or not at all; see `replacing`.

    Raises:
        OSError: it cannot be written; it names the path.
    """
    with replacing(path, shared=shared) as place:
        place.write_text(text, encoding="utf-8")


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` replaced by the user's folder, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; not so of names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, NUL, half of a surrogate pair, not permitted
        return False


def seal(archive: bytes) -> bytes:
    """Return a ZIP archive with the digest of all its bytes at the end, as its comment.

    Args:
        archive: without a comment.
    """
    # The length of the comment, in the archive's last two bytes, is part of what is digested.
    content = archive[:-2] + _DIGEST.to_bytes(2, "little")
    return content + hashlib.sha256(content).hexdigest().encode()


def is_sealed(path: Path) -> bool:
    """Whether a file is what `seal` made of an archive, to the last bit.

    Raises:
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    return hashlib.sha256(data[:-_DIGEST]).hexdigest().encode() == data[-_DIGEST:]
