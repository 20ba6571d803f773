"""Features of the frozen target, computed once for every row of the text and kept in files.

Knows rows by their number, and files; how rows are cut is `packing`'s business. A row is computed
as it would be in training, so that a run from these files has the losses of one that computes
its features on the fly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eagle.errors import DataError
from eagle.host import replacing, write_text
from eagle.plugin import FeatureExtractor
from eagle.target import Target
from eagle.train.data import Packer, fingerprint, visibility
from eagle.train.features import Features, Layout
from eagle.train.run.loop import compiles
from eagle.train.spec import TrainSpec

__all__ = ["Shards", "kept_features"]

VERSION = 1
GIB = 2**30


class Shards:
    """The features of all rows, in the files of a folder.

    Args:
        folder: ``layout.json`` and one ``features-NNNNN.safetensors`` for every shard.
        layout: what they hold.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._open: dict[int, Any] = {}

    def prepare(
        self,
        packer: Packer,
        features: Features,
        device: torch.device,
        *,
        batch: int,
        limit: float,
        say: Callable[[str], None],
    ) -> None:
        """Write the files that are not there yet; killed at any moment, it goes on from there.

        Several processes may call it at once: one writes, the others wait for it.

        Args:
            packer: the rows, cut once.
            features: the target's pass; transformers' own attention must be in place.
            device: of the target.
            batch: rows of a pass, always as many, as compiled passes need it.
            limit: GiB that all files together may take.
            say: is told how much is written.

        Raises:
            DataError: they would take more than the limit or the disk has, the folder holds
                other features, or a file cannot be written.
        """
        size = self.layout.bytes / GIB
        if size > limit:
            raise DataError(
                f"cached features of {self.layout.rows:,} rows of {self.layout.length} tokens take "
                f"{size:.1f} GiB, more than data.cache_limit: {limit:g}; raise it, give less text, "
                "or use data.features: on-the-fly"
            )
        with _writing(self.folder), self._alone(say):
            self._check()
            missing = [n for n in range(self.layout.shards) if not self._complete(n)]
            if not missing:
                say(f"cached features: {size:.2f} GiB in {self.folder}")
                return
            self._check_room(missing)
            say(
                f"cached features take {size:.2f} GiB in {self.folder}: writing {len(missing)} of "
                f"{self.layout.shards} files ..."
            )
            for done, number in enumerate(missing, start=1):
                self._write(number, packer, features, device, batch)
                say(f"cached features: {done} of {len(missing)} files written")

    @contextmanager
    def _alone(self, say: Callable[[str], None]) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that writes features in {self.folder} ...")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _check(self) -> None:
        """Compare the folder's layout with this one, or leave this one there.

        Raises:
            DataError: naming everything that differs.
        """
        path, ours = self.folder / "layout.json", {"version": VERSION, **asdict(self.layout)}
        if not path.exists():
            write_text(path, json.dumps(ours, indent=2))
            return
        try:
            theirs = json.loads(path.read_text())
            known = {**theirs, **theirs["identity"]}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a layout of cached features: {error}") from error
        wanted = {**ours, **self.layout.identity}
        skipped = ("identity", "shard")
        changed = [k for k, v in wanted.items() if k not in skipped and known.get(k) != v]
        if changed:
            raise DataError(
                f"{self.folder} holds features of another {', '.join(changed)}; give this run a "
                "folder of its own with data.cache, or remove that one"
            )
        self.layout = Layout(**{k: v for k, v in theirs.items() if k != "version"})

    def _check_room(self, missing: list[int]) -> None:
        rows = sum(len(self.layout.part(number)) for number in missing)
        needed = self.layout.bytes * rows / self.layout.rows / GIB
        free = shutil.disk_usage(self.folder).free / GIB
        if needed > free:
            raise DataError(
                f"cached features need {needed:.2f} GiB more, but the disk of {self.folder} has "
                f"{free:.2f} GiB left; make room, set data.cache to another disk, or use "
                "data.features: on-the-fly"
            )

    def _path(self, number: int) -> Path:
        return self.folder / f"features-{number:05}.safetensors"

    def _complete(self, number: int) -> bool:
        """Return whether a file is there and whole: safetensors compares its size with its head."""
        shape = [len(self.layout.part(number)), self.layout.length, self.layout.features]
        try:
            with safe_open(self._path(number), "pt") as file:
                return bool(file.get_slice("features").get_shape() == shape)
        except (OSError, SafetensorError):
            return False

    def _write(
        self, number: int, packer: Packer, features: Features, device: torch.device, batch: int
    ) -> None:
        rows = self.layout.part(number)
        parts: dict[str, list[Tensor]] = {"features": [], "last": []}
        for start in range(rows.start, rows.stop, batch):
            wanted = list(range(start, min(start + batch, rows.stop)))
            filled = wanted + wanted[-1:] * (batch - len(wanted))
            made = packer.of(filled).to(device)
            true, last = features(made.tokens, made.positions, visibility(made.documents))
            parts["features"].append(true[: len(wanted)].cpu())
            if self.layout.last:
                parts["last"].append(last[: len(wanted)].cpu())
        path = self._path(number)
        with replacing(path) as place:
            save_file({name: torch.cat(part) for name, part in parts.items() if part}, place)

    def rows(self, numbers: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the features ``[B, L, F]`` of rows, and the LM head's inputs ``[B, L, H]``.

        Raises:
            DataError: a file is missing or damaged.
        """
        found = [self._read("features", number, device) for number in numbers]
        features = torch.stack(found).to(device, non_blocking=True)
        if not self.layout.last:
            return features, features
        last = torch.stack([self._read("last", number, device) for number in numbers])
        return features, last.to(device, non_blocking=True)

    def _read(self, name: str, row: int, device: torch.device) -> Tensor:
        number, place = divmod(row, self.layout.shard)
        path = self._path(number)
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, "pt")
            out: Tensor = self._open[number].get_slice(name)[place]
        except (OSError, SafetensorError) as error:
            raise DataError(f"the cached features {path} cannot be read: {error}") from error
        return out


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Explain why features cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        for part in folder.glob(".*.writing"):
            part.unlink(missing_ok=True)
        raise DataError(
            f"features could not be written to {folder}: {error}. What is whole is kept: make room "
            "and run again"
        ) from error


def kept_features(
    spec: TrainSpec,
    target: Target,
    extractor: FeatureExtractor,
    packer: Packer,
    text: str,
    say: Callable[[str], None],
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return the cached features of each step of a run, computing first what is not there.

    Args:
        spec: the training spec.
        target: with transformers' own attention in place (`Target.stock`).
        extractor: the feature extractor.
        packer: the rows, cut once.
        text: digest of the training text.
        say: is told how much is written.

    Raises:
        DataError: see `Shards.prepare`.
    """
    data = spec.data
    identity = {
        "target": fingerprint(target),
        "extractor": json.dumps(spec.features.model_dump(mode="json")),
        "text": text,
        "data.heldout": str(data.heldout),
        "data.seed": str(data.seed),
    }
    layout = Layout.of(packer.rows, data.length, extractor, target.info, target.dtype, identity)
    folder = spec.path(data.cache) if data.cache else Path(spec.output).expanduser() / "features"
    shards = Shards(folder, layout)
    shards.prepare(
        packer,
        Features(target, extractor, compiled=compiles(spec, target)),
        target.device,
        batch=spec.batch,
        limit=data.cache_limit,
        say=say,
    )
    return lambda step: shards.rows(packer.numbers(step), target.device)
