"""The cache folder: where it is, one writer at a time, whole files only; knows no asset."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from eagle.errors import AssetError, EagleError
from eagle.host import FULL_DISK, disk_error

__all__ = [
    "cache_dir",
    "exclusive",
    "full_disk",
    "matches",
    "notify",
    "readable_disk_errors",
    "staging",
]


def cache_dir() -> Path:
    """Return the folder for fetched files: ``EAGLE_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("EAGLE_CACHE") or platformdirs.user_cache_dir("eagle")).expanduser()


def notify(message: str) -> None:
    """Tell the user, on stderr: standard output belongs to the answer."""
    print(message, file=sys.stderr, flush=True)


def matches(path: Path, sha256: str) -> bool:
    """Whether a file exists and has that digest."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


@contextmanager
def readable_disk_errors(folder: Path, space: int) -> Iterator[None]:
    """Turn an error of the file system into an `AssetError` that says what to do.

    Args:
        folder: the cache folder, named in the message.
        space: bytes needed, named in the message where the disk is full.
    """
    try:
        yield
    except EagleError:
        raise
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        if found.errno in FULL_DISK:
            raise AssetError(full_disk(folder, space)) from error
        raise AssetError(
            f"cannot write to the cache folder {folder}: {found.strerror or found}. "
            "Set EAGLE_CACHE to a folder that you may write to."
        ) from error


def full_disk(folder: Path, space: int) -> str:
    """Return the message for a full disk."""
    return (
        f"the disk that holds the cache folder {folder} is full: about {space / 1e6:.0f} MB are "
        "needed. Nothing half-written was kept. Free some space, or set EAGLE_CACHE to a folder "
        "on another disk."
    )


@contextmanager
def exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of one asset, so that two processes do not fetch it twice."""
    # Imported late: with a warm cache no lock is taken, and a start should not pay for it.
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"Waiting for another process that is fetching {name} into {folder} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder beside the final place, removed at the end whatever happens.

    Call it under the asset's lock: what a killed process left there is removed first.
    """
    path = folder / f".{name}.staging"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
