"""The time below which no pass can be: the bytes that it reads over the memory's read bandwidth.

Knows a model's weights, its keys and values, and the device they are on; knows no decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from eagle.bench.mixtures import mixture_of
from eagle.host import free_memory
from eagle.runtime import seconds_of
from eagle.target import Target, quantizing

__all__ = ["cache_bytes", "peak_memory", "read_bandwidth", "reset_peak_memory", "weight_bytes"]

_BUFFER = {"cuda": 4 << 30, "cpu": 1 << 30}  # bytes: many times what any cache holds
_SHARE = 0.5  # of the free memory, at most
_ROUNDS = 8
_WIDTH = 4096


def weight_bytes(target: Target, rows: int = 1) -> float:
    """Return the bytes of weights that one pass and its LM head read.

    All weights but the input embedding, of which only a few rows are looked up (all of it where
    it is the LM head as well). Of experts, those that are read if each row is routed
    independently and evenly: ``E (1 - (1 - k / E) ** rows)`` of E, k for each row.

    Of a target that is cut over processes, what one of them has.

    Args:
        target: the model.
        rows: tokens in the pass, in all slots together.
    """
    model, config = target.model, target.config
    readout = getattr(model.get_output_embeddings(), "weight", None)
    lookup = model.get_input_embeddings().weight
    mixed = mixture_of(config)
    read = mixed.expected(rows) / mixed.experts if mixed else 1.0
    found = {
        id(weight): size * (read if ".experts." in f"{place}.{name}" else 1.0)
        for place, layer in model.named_modules()
        for name, (weight, size) in quantizing.kept_bytes(layer).items()
        if weight is readout or weight is not lookup
    }
    return float(sum(found.values()))


def cache_bytes(target: Target, rows: int) -> int:
    """Return the bytes of keys and values of some rows, in all layers and slots together.

    Args:
        target: the model.
        rows: committed tokens and those of the pass itself, of all slots.
    """
    row: int = 2 * target.kv_heads * target.head_dim * target.dtype.itemsize
    return row * target.info.layers * rows


def read_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Measure how fast a device reads its memory, in bytes per second.

    The better of two kernels that read a large buffer once and write next to nothing: its sum,
    and its product with a vector. Of each, the fastest of some rounds.

    Args:
        device: which.
        size: bytes of the buffer; by default several GB, or half of the memory that is free.
    """
    if size is None:
        size = min(_BUFFER[device.type], int(_SHARE * free_memory(device)))
    rows = max(size // (4 * _WIDTH), 1)
    buffer = torch.ones(rows, _WIDTH, device=device)
    vector = torch.ones(_WIDTH, device=device)
    kernels: tuple[Callable[[], object], ...] = (buffer.sum, lambda: buffer @ vector)
    seconds = min(seconds_of(device, kernel) for kernel in kernels for _ in range(_ROUNDS))
    return buffer.nbytes / seconds


def reset_peak_memory(device: torch.device) -> None:
    """Begin to watch for the peak anew, where the device keeps one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes allocated since the last reset; on a CPU, what the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
