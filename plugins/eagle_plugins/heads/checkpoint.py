"""Reading and writing draft heads in the layout of the published EAGLE checkpoints.

A folder with ``config.json`` (a Llama configuration with one layer) and ``model.safetensors``, or
``pytorch_model.bin`` holding tensors and nothing else. Knows files and tensors, not how they are
used.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle.plugin import RATES_FILE, CheckpointError, rotary_depends_on_length

__all__ = ["locate", "read_config", "read_tensors", "write_checkpoint"]

SHIPPED = Path(__file__).parent / "weights"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
# Older published checkpoints carry the target's embedding and constants; both are the target's.
_TOLERATED = ("embed_tokens.weight", "layers.0.self_attn.rotary_emb.inv_freq")


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
    path = folder / Path(weights).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"head.weights: {path} is a file; give the folder that it is in")
    if weights.startswith((".", "/", "~")) or weights.count("/") != 1:
        raise CheckpointError(f"head.weights: there is no folder {path}")
    return _download(weights)


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repository, allow_patterns=["config.json", RATES_FILE, *_WEIGHTS])
        )
    except Exception as error:
        raise CheckpointError(
            f"head.weights: {repository!r} is neither a folder here nor could it be fetched from "
            f"the Hugging Face Hub ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def read_config(folder: Path) -> Any:
    """Return the head's configuration as a `transformers.LlamaConfig`.

    Raises:
        CheckpointError: no readable ``config.json``, or one that lacks a needed key.
    """
    from transformers import LlamaConfig

    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no config.json, so it is no draft head checkpoint")
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable draft head configuration: {error}"
        ) from error
    missing = [key for key in _NEEDED if key not in values]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}; a one-layer Llama config has them"
        )
    values.pop("model_type", None)
    try:
        config = LlamaConfig(**values)
    except Exception as error:  # transformers' validators raise kinds of their own
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is no Llama configuration: {reason}") from error
    if config.hidden_act not in ("silu", "swish"):
        raise CheckpointError(
            f"{path}: hidden_act {config.hidden_act!r} is not that of a Llama layer, 'silu'"
        )
    if rotary_depends_on_length(config):
        raise CheckpointError(
            f"{path}: its rotary embedding changes with the text's length, so its cached keys "
            "would not be those of a single pass"
        )
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the head's tensors by name, the target's own (an embedding, say) left out.

    Raises:
        CheckpointError: no weights, a damaged file, or a pickle that holds more than tensors.
    """
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds no draft head weights ({' or '.join(_WEIGHTS)})")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            with warnings.catch_warnings():  # about pickles that are refused right after
                warnings.simplefilter("ignore")
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and was not loaded: unpickling it could run any code. "
            "Convert it to safetensors where you trust it"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors")
    return {name: tensor for name, tensor in tensors.items() if name not in _TOLERATED}


def check_tensors(folder: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare the tensors of a checkpoint with those that its configuration implies.

    Raises:
        CheckpointError: naming every missing, unexpected or misshapen tensor.
    """
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"the draft head in {folder} does not fit its config: {'; '.join(problems)}"
        )


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
                {key: t.contiguous().cpu() for key, t in tensors.items()}, staged / _WEIGHTS[0]
            )
            (staged / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            (folder / RATES_FILE).unlink(missing_ok=True)
            for file in (_WEIGHTS[0], "config.json"):
                (staged / file).chmod(0o644)  # safetensors writes for its owner alone
                os.replace(staged / file, folder / file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the draft head could not be written to {folder}: {error}"
        ) from error
