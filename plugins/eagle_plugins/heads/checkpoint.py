"""Where the checkpoint of a draft head is, and what is read from and written to its folder.

The layout is that of the published EAGLE checkpoints: ``config.json`` (a Llama configuration) and
weights. Knows names of tensors, not how they are used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eagle.plugin import RATES_FILE, CheckpointError
from eagle_plugins.heads.layouts import Layout
from eagle_plugins.heads.shared import EMBEDDING, LM_HEAD
from eagle_plugins.heads.tensors import WEIGHTS, Stored, read, shown

__all__ = ["locate", "read_weights", "weights_of", "write_checkpoint"]

SHARED = (EMBEDDING, LM_HEAD)
"""What heads of EAGLE-1 and 2 have of the target."""

SHIPPED = Path(__file__).parent / "weights"
_SHOWN = 6  # of the tensors that do not fit
_FETCHED = (
    "config.json", "adapter_config.json", RATES_FILE, *WEIGHTS,
    *(f"{name}.index.json" for name in WEIGHTS),
    "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin",
)  # fmt: skip
# Constants, which follow from the configuration.
_CONSTANT = re.compile(r"((layers\.\d+|midlayer)\.self_attn\.)?rotary_emb\.inv_freq")


def locate(weights: str, target: str | None, folder: Path) -> Path:
    """Return the folder of a head's checkpoint.

    Args:
        weights: ``auto`` (the shipped head for *target*), the name of a shipped head, a folder,
            or a Hub id.
        target: name of the target, as its spec gives it.
        folder: where a relative path starts.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if weights == "auto":
        if target in shipped:
            return SHIPPED / str(target)
        raise CheckpointError(
            f"no draft head is shipped for the target {target!r} (only for {', '.join(shipped)}); "
            "give its checkpoint as head.weights (a folder or a Hub id), or use the spec 'plain'"
        )
    if weights in shipped:
        return SHIPPED / weights
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
    return _download(weights)


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_FETCHED)))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"head.weights: {repository!r} is neither a folder here nor could it be fetched from "
            f"the Hugging Face Hub ({type(error).__name__}: {reason})"
        ) from error


def weights_of(layout: Layout, apart: Collection[str] = SHARED) -> dict[str, Stored]:
    """Return what a head's network has of a folder: no constants, and not what is apart from it."""
    return {
        name: stored
        for name, stored in layout.tensors.items()
        if name not in apart and not _CONSTANT.fullmatch(name)
    }


def read_weights(
    layout: Layout, expected: dict[str, Tensor], apart: Collection[str] = SHARED
) -> dict[str, Tensor]:
    """Return the weights of a head's network, after comparing their names and shapes.

    Args:
        layout: the folder.
        expected: what its configuration implies, on any device.
        apart: names of what is no part of the network; by default, what is the target's.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected, misshapen or not finite.
    """
    stored = weights_of(layout, apart)
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
            f"the draft head in {layout.folder} does not fit its config: "
            f"{'; '.join(problems[:_SHOWN])}{more}"
        )
    found = read(stored)
    damaged = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if damaged:
        raise CheckpointError(
            f"the draft head in {layout.folder} is damaged: {damaged[0]} holds NaN or infinity"
            + (f", and so do {len(damaged) - 1} more" if len(damaged) > 1 else "")
        )
    return found


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint; each of its two files is replaced whole, or not at all.

    What was measured of a head that was there before is removed: it is not true of this one.

    Raises:
        CheckpointError: it could not be written (a full disk, say); the old one is untouched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".writing-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
            staged = Path(name)
            save_file(
                {key: t.contiguous().cpu() for key, t in tensors.items()}, staged / WEIGHTS[0]
            )
            (staged / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            (folder / RATES_FILE).unlink(missing_ok=True)
            for file in (WEIGHTS[0], "config.json"):
                (staged / file).chmod(0o644)  # safetensors writes for its owner alone
                os.replace(staged / file, folder / file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the draft head could not be written to {folder}: {error}"
        ) from error
