"""The weight files of a draft head: which tensors they hold, and those that are asked for.

Safetensors, or a pickle of tensors and nothing else; one file, or several behind an index. Knows
files and tensors, not what they are for.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from eagle.plugin import CheckpointError

__all__ = [
    "MAP_DTYPES",
    "WEIGHTS",
    "Stored",
    "read_json",
    "read_tensors",
    "rows_of",
    "shown",
    "stored_in",
]

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, the first one that is there being read; ``NAME.index.json`` names shards."""

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
MAP_DTYPES = ("int64", "int32", "bool", "uint8")
"""Dtypes of maps between vocabularies."""

_TAKEN = ("float64", "float32", "float16", "bfloat16")
_TEXT = 2**24  # bytes of a JSON file that are read
_PACKED = 2  # a zip of tensors is not compressed: more than its own size cannot be in it


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: where it is.
        name: what it is called there.
        shape: its sizes.
        dtype: as PyTorch calls it.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises:
        CheckpointError: it cannot be read, is far too long, or holds something else.
    """
    try:
        if path.stat().st_size > _TEXT:
            raise ValueError(f"it is longer than {_TEXT >> 20} MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {_line(error)}") from error
    return values


def stored_in(folder: Path, weights: Sequence[str] = WEIGHTS) -> dict[str, Stored]:
    """Return what the weight files of a folder hold, by name; no weight of safetensors is read.

    Args:
        folder: where they are.
        weights: their names, the first one that is there being read; ``NAME.index.json`` of
            shards too.

    Raises:
        CheckpointError: no weights, a damaged file, or a pickle that holds more than tensors.
    """
    for name in weights:
        if (folder / name).is_file():
            return _listed(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _sharded(index)
    raise CheckpointError(
        f"{folder} holds no draft head weights ({' or '.join(weights)}, or an index of either)"
    )


def read_tensors(stored: Mapping[str, Stored], dtypes: Sequence[str] = _TAKEN) -> dict[str, Tensor]:
    """Return tensors, by the names that they are given under.

    Args:
        stored: where they are.
        dtypes: that are taken.

    Raises:
        CheckpointError: one is of a dtype that weights do not have, or not there as a whole.
    """
    for name, one in stored.items():
        if one.dtype not in dtypes:
            what = "a draft head's weights are" if dtypes is _TAKEN else "it should be"
            raise CheckpointError(
                f"{one.file}: {name} is of dtype {one.dtype}; {what} {', '.join(dtypes)}"
            )
    found: dict[str, Tensor] = {}
    for file in {one.file for one in stored.values()}:
        wanted = {name: one.name for name, one in stored.items() if one.file == file}
        if file.suffix == ".safetensors":
            with _explained(file), safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(own) for name, own in wanted.items()}
        else:
            pickled = _unpickled(file)
            for name, own in wanted.items():
                found[name] = _whole(file, name, pickled[own]).clone()
    return {name: found[name] for name in stored}


def rows_of(stored: Stored, rows: Iterable[int]) -> Tensor:
    """Return some rows of a matrix, float32 ``[n, ...]``; others are not read.

    Raises:
        CheckpointError: as `read`.
    """
    if stored.dtype not in _TAKEN:
        raise CheckpointError(f"{stored.file}: {stored.name} is of dtype {stored.dtype}")
    if stored.file.suffix == ".safetensors":
        with _explained(stored.file), safe_open(stored.file, "pt") as opened:
            part = opened.get_slice(stored.name)
            return torch.cat([part[row : row + 1] for row in rows]).float()
    whole = _whole(stored.file, stored.name, _unpickled(stored.file)[stored.name])
    return whole[list(rows)].float()


def _listed(file: Path) -> dict[str, Stored]:
    if file.suffix == ".safetensors":
        with _explained(file), safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: Stored(
                    file, name, tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), "unknown")
                )
                for name, part in parts.items()
            }
    return {
        name: Stored(file, name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in _unpickled(file).items()
    }


def _sharded(index: Path) -> dict[str, Stored]:
    """Return what the files hold that an index names."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise CheckpointError(f"{index} has no weight_map of tensors' names to files")
    suffix = "." + index.name.split(".")[1]
    found: dict[str, Stored] = {}
    for name in sorted(set(named.values())):
        file = index.with_name(name) if name == Path(name).name and "\0" not in name else index
        if file.suffix != suffix or not file.is_file():
            raise CheckpointError(f"{index}: there is no file {name!r} beside it")
        found |= _listed(file)
    lacking = [name for name in named if name not in found]
    if lacking:
        raise CheckpointError(
            f"{index}: {shown(lacking[0])} is not in {named[lacking[0]]}"
            + (f", and so are {len(lacking) - 1} more" if len(lacking) > 1 else "")
        )
    return found


class _explained:  # noqa: N801
    """Turns whatever a damaged file raises into one sentence."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{self._file} holds more than tensors and was not loaded: unpickling it could "
                "run any code. Convert it to safetensors where you trust it"
            ) from error
        # A damaged file raises any kind, from within the libraries that read it.
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            raise CheckpointError(
                f"{self._file} is damaged or truncated: {_line(error)}"
            ) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle, where it can be without reading them yet."""
    with _explained(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that are refused right after
        zipped = zipfile.is_zipfile(file)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                size = sum(one.file_size for one in archive.infolist())
            if size > _PACKED * file.stat().st_size:
                raise ValueError(f"it would unpack to {size:,} bytes")
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in tensors.items()
    ):
        raise CheckpointError(f"{file} does not hold a dictionary of tensors")
    return tensors


def _whole(file: Path, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of a pickle, after making sure that the file holds every number of it."""
    if tensor.is_meta:
        raise CheckpointError(f"{file}: {name} is a meta tensor: its numbers were not saved")
    if tensor.is_quantized or tensor.layout != torch.strided:
        raise CheckpointError(f"{file}: {name} is quantised or sparse; save it as a plain tensor")
    # A view that repeats a few numbers is as large as it says once it is copied.
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{file}: {name} has {tensor.numel():,} numbers, of which the file holds fewer"
        )
    return tensor.detach()


def shown(name: str) -> str:
    """Return a name of a file's, which may be anything, as messages show it."""
    return " ".join(name.split())[:80]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
