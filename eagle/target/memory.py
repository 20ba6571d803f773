"""How much memory a target's weights take, known from the headers of its files alone.

Knows the headers of safetensors and GGUF files; loads and allocates nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from eagle.errors import TargetError
from eagle.host import free_memory
from eagle.target.formats import Stored, loaded_bytes, settings_of
from eagle.target.quantizing import BITS, Quantize

__all__ = ["check_memory", "needed"]

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_KEPT = ("embed", "lm_head", "wte", "wpe", "embd")  # in names of what is never quantized
_LARGEST = 2**27  # bytes of a header
_SHAPE, _LONGEST = "weight_shape", 64  # bytes of a shape
_MOST = 64  # GPUs that are thought of


def needed(
    folder: Path,
    dtype: torch.dtype,
    kind: Quantize | None = None,
    processes: int = 1,
    gguf: str | None = None,
) -> int | None:
    """Return the bytes that the weights of a folder take once they are loaded.

    Args:
        folder: of the target.
        dtype: that floating point numbers get.
        kind: how linear layers are quantized, if they are.
        processes: among which layers are cut; embeddings and LM head are not, or not always.
        gguf: the name of the GGUF file that is read, if one is: it is unpacked.

    Returns:
        None where there are no such files, or their headers cannot be read.
    """
    try:
        if gguf is not None:
            return dtype.itemsize * _unpacked(folder / gguf)
        found, settings = list(_tensors(folder)), settings_of(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # said by whoever loads them
    if not found:
        return None
    total = 0.0
    for tensor in found:
        cut = len(tensor.shape) > 1 and not any(part in tensor.name for part in _KEPT)
        size: float = loaded_bytes(tensor, settings, dtype)
        if kind and cut and tensor.is_float:
            size = tensor.numbers * BITS[kind] / 8
        total += size / (processes if cut else 1)
    return int(total)


def _unpacked(path: Path) -> int:
    """Return how many numbers the tensors of a GGUF file have.

    Raises:
        ValueError: this version of transformers does not tell, or the file is damaged.
    """
    try:
        from transformers.integrations.gguf.reader import GgufHeader

        return sum(prod(tensor.shape) for tensor in GgufHeader.from_file(str(path)).tensors)
    except Exception as error:  # of no public interface, and of files that may hold anything
        raise ValueError("its header cannot be read") from error


def _tensors(folder: Path) -> Iterator[Stored]:
    """Yield what every tensor of a folder's safetensors is."""
    index = folder / _INDEX
    if index.is_file():
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    else:
        files = [_SINGLE] if (folder / _SINGLE).is_file() else []
    for file in files:
        with (folder / file).open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > _LARGEST:
                raise ValueError("no header is as long as that")
            header = json.loads(opened.read(length))
            whole = {
                name.removesuffix("shape"): _shape(opened, 8 + length, one)
                for name, one in header.items()
                if name.endswith(_SHAPE)
            }
        for name, one in header.items():
            if name != "__metadata__":
                packed = whole.get(name.removesuffix("packed"))
                yield Stored(name, one["dtype"], tuple(one["shape"]), packed)


def _shape(opened: BinaryIO, start: int, one: dict[str, Any]) -> tuple[int, ...]:
    """Return the numbers of a tensor that holds a shape, as that of a packed weight does.

    Raises:
        ValueError: it is no such tensor.
    """
    begin, end = one["data_offsets"]
    if one["dtype"] not in ("I32", "I64") or not 0 <= end - begin <= _LONGEST:
        raise ValueError("no shape is kept like that")
    size = int(one["dtype"][1:]) // 8
    opened.seek(start + begin)
    data = opened.read(end - begin)
    return tuple(
        int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size)
    )


def check_memory(
    folder: Path | None,
    text: Any,
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kind: Quantize | None = None,
    processes: int = 1,
    gguf: str | None = None,
) -> None:
    """Refuse a target whose weights alone are more than there is free memory for.

    Args:
        folder: of its files, None where they are not on this machine yet.
        text: its text configuration.
        name: of the target.
        dtype: that its weights get.
        device: where they go.
        kind: how they are quantized, if they are.
        processes: among which they are cut.
        gguf: the name of the GGUF file that is read, if one is.

    Raises:
        TargetError: with what would fit.
    """
    asked = needed(folder, dtype, kind, processes, gguf) if folder else None
    if folder is None or asked is None:
        return
    free = free_memory(device, reusable=True)
    # Processes on one CPU share its memory.
    together = processes if device.type == "cpu" else 1
    if asked * together <= free:
        return
    ways = []
    others: tuple[Quantize, ...] = ("int8", "int4")
    for other in others:
        plain = not settings_of(folder) and kind is None and gguf is None
        less = needed(folder, dtype, other, processes) if plain else None
        if less is not None and less * together <= free:
            ways.append(f"runtime.quantize={other} ({_size(less)})")
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if device.type == "cuda":
        for count in range(processes + 1, _MOST + 1):
            share = needed(folder, dtype, kind, count) if gguf is None else None
            if heads % count == kv_heads % count == 0 and share is not None and share <= free:
                ways.append(f"target.tp_plan=auto over {count} such GPUs ({_size(share)} each)")
                break
    raise TargetError(
        f"the target {name!r} needs {_size(asked)} for its weights"
        + (f" in each of {processes} processes" if processes > 1 else "")
        + f", and {device} has {_size(free)} free; "
        + (f"what would fit: {'; '.join(ways)}" if ways else "no way of loading it fits here")
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"
