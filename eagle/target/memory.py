"""How much memory a target's weights take, known from the headers of its files alone.

Knows safetensors' headers and the sizes of dtypes; loads and allocates nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from eagle.errors import TargetError
from eagle.host import free_memory
from eagle.target.quantizing import BITS, Quantize

__all__ = ["check_memory", "needed"]

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_KEPT = ("embed", "lm_head", "wte", "wpe", "embd")  # in names of what is never quantized
_LARGEST = 2**27  # bytes of a header
_MOST = 64  # GPUs that are thought of


def needed(
    folder: Path, dtype: torch.dtype, kind: Quantize | None = None, processes: int = 1
) -> int | None:
    """Return the bytes that the weights of a folder take once they are loaded.

    Args:
        folder: of the target.
        dtype: that floating point numbers get.
        kind: how linear layers are quantized, if they are.
        processes: among which layers are cut; embeddings and LM head are not, or not always.

    Returns:
        None where there are no safetensors, or their headers cannot be read.
    """
    try:
        found = list(_tensors(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # said by whoever loads them
    if not found:
        return None
    total = 0.0
    for name, stored, shape in found:
        numbers, bits = prod(shape), 8.0 * _BYTES.get(stored, 1)
        if stored in _FLOATS:
            bits = 8.0 * dtype.itemsize
        cut = len(shape) > 1 and not any(part in name for part in _KEPT)
        if kind and cut and stored in _FLOATS:
            bits = BITS[kind]
        total += numbers * bits / 8 / (processes if cut else 1)
    return int(total)


def _tensors(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, dtype and shape of every tensor of a folder's safetensors."""
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
        for name, one in header.items():
            if name != "__metadata__":
                yield name, one["dtype"], one["shape"]


def check_memory(
    folder: Path | None,
    text: Any,
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kind: Quantize | None = None,
    processes: int = 1,
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

    Raises:
        TargetError: with what would fit.
    """
    asked = needed(folder, dtype, kind, processes) if folder else None
    if folder is None or asked is None:
        return
    free = free_memory(device)
    # Processes on one CPU share its memory.
    together = processes if device.type == "cpu" else 1
    if asked * together <= free:
        return
    ways = []
    others: tuple[Quantize, ...] = ("int8", "int4")
    for other in others:
        plain = getattr(text, "quantization_config", None) is None and kind is None
        less = needed(folder, dtype, other, processes) if plain else None
        if less is not None and less * together <= free:
            ways.append(f"runtime.quantize={other} ({_size(less)})")
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if device.type == "cuda":
        for count in range(processes + 1, _MOST + 1):
            share = needed(folder, dtype, kind, count)
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
