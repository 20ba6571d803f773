"""Where the checkpoint of a draft head is, and what is read from and written to its folder.

A folder holds ``config.json`` and weights. Knows names of tensors, not how they are used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eagle.plugin import RATES_FILE, CheckpointError
from eagle.plugin.blocks.heads.tensors import (
    WEIGHTS,
    Stored,
    read_json,
    read_tensors,
    shown,
    stored_in,
)

__all__ = [
    "EMBEDDING",
    "LM_HEAD",
    "HeadFiles",
    "find_checkpoint",
    "read_weights",
    "weights_of",
    "write_checkpoint",
]

EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"

SHARED = (EMBEDDING, LM_HEAD)
"""What heads of EAGLE-1 and 2 have of the target."""

_SHOWN = 6  # of the tensors that do not fit
_FETCHED = (
    "config.json", "adapter_config.json", RATES_FILE, *WEIGHTS,
    *(f"{name}.index.json" for name in WEIGHTS),
    "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin",
)  # fmt: skip
# Constants, which follow from the configuration.
_CONSTANT = re.compile(r"((layers\.\d+|midlayer)\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True)
class HeadFiles:
    """The folder of a draft head, before any weight is read.

    Attributes:
        folder: where it is.
        config: what ``config.json`` says.
        tensors: what its files hold, by name.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @classmethod
    def read(cls, folder: Path, weights: Sequence[str] = WEIGHTS) -> HeadFiles:
        """Read a folder's configuration, and the names and shapes of its tensors.

        Args:
            folder: where it is.
            weights: names of files of weights, the first one that is there being read.

        Raises:
            CheckpointError: it has no configuration or no weights, or they cannot be read.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no config.json, so it is no draft head checkpoint"
            )
        return cls(folder, read_json(path), stored_in(folder, weights))


def find_checkpoint(weights: str, folder: Path, more: Sequence[str] = ()) -> Path:
    """Return the folder of a head's checkpoint, fetched where it is on the Hugging Face Hub.

    Args:
        weights: a folder, or a Hub id.
        folder: where a relative path starts.
        more: patterns of files to fetch beside ``config.json`` and the usual weights.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    try:
        path = folder / Path(weights).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise CheckpointError(f"head.weights: {path} is a file; give the folder that it is in")
    except (OSError, ValueError, RuntimeError) as error:  # too long, or of characters of no name
        raise CheckpointError(f"head.weights: {weights!r:.80} is no path: {error!s:.80}") from error
    if weights.startswith((".", "/", "~")) or weights.count("/") != 1:
        raise CheckpointError(f"head.weights: there is no folder {path}")
    return _download(weights, more)


def _download(repository: str, more: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[*_FETCHED, *more]))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"head.weights: {repository!r} is neither a folder here nor could it be fetched from "
            f"the Hugging Face Hub ({type(error).__name__}: {reason})"
        ) from error


def weights_of(files: HeadFiles, apart: Collection[str] = SHARED) -> dict[str, Stored]:
    """Return what a head's network has of a folder: no constants, and not what is apart from it."""
    return {
        name: stored
        for name, stored in files.tensors.items()
        if name not in apart and not _CONSTANT.fullmatch(name)
    }


def read_weights(
    files: HeadFiles, expected: dict[str, Tensor], apart: Collection[str] = SHARED
) -> dict[str, Tensor]:
    """Return the weights of a head's network, after comparing their names and shapes.

    Args:
        files: the folder.
        expected: what its configuration implies, on any device.
        apart: names of what is no part of the network; by default, what is the target's.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected, misshapen or not finite.
    """
    stored = weights_of(files, apart)
    problems = [f"missing {name}" for name in expected if name not in stored]
    problems += [f"unexpected {shown(name)}" for name in stored if name not in expected]
    problems += [
        f"{name} is {list(stored[name].shape)}, not {list(expected[name].shape)}"
        for name in expected
        if name in stored and stored[name].shape != tuple(expected[name].shape)
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"the draft head in {files.folder} does not fit its config: "
            f"{'; '.join(problems[:_SHOWN])}{more}"
        )
    found = read_tensors(stored)
    damaged = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if damaged:
        raise CheckpointError(
            f"the draft head in {files.folder} is damaged: {damaged[0]} holds NaN or infinity"
            + (f", and so do {len(damaged) - 1} more" if len(damaged) > 1 else "")
        )
    return found


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    weights: str = WEIGHTS[0],
) -> None:
    """Write a checkpoint; each of its two files is replaced whole, or not at all.

    What was measured of a head that was there before is removed: it is not true of this one.

    Args:
        folder: where to.
        config: what ``config.json`` is to say.
        tensors: by name, on any device.
        weights: name of the file that they go to, a safetensors file.

    Raises:
        CheckpointError: it could not be written (a full disk, say); the old one is untouched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".writing-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
            staged = Path(name)
            save_file({key: t.contiguous().cpu() for key, t in tensors.items()}, staged / weights)
            (staged / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            (folder / RATES_FILE).unlink(missing_ok=True)
            for file in (weights, "config.json"):
                (staged / file).chmod(0o644)  # safetensors writes for its owner alone
                os.replace(staged / file, folder / file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the draft head could not be written to {folder}: {error}"
        ) from error
