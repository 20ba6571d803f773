"""Where a model computes, and in what numbers; knows devices and processes, not what they run."""

from __future__ import annotations

import os
from typing import Any

import torch

from eagle.errors import TargetError

__all__ = ["device_of", "is_cut", "is_spread", "processes", "resolve_device", "resolve_dtype"]


def resolve_device(name: str) -> torch.device:
    """Return the device of a spec; ``auto`` is the first CUDA device, or the CPU.

    Raises:
        TargetError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):  # digits of other scripts, or more than an index may have
        raise TargetError(
            f"target.device: there is no {name:.40} here; use 'cpu' or 'auto'"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TargetError(f"target.device: there is no {name} here; use 'cpu' or 'auto'")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a spec; ``auto`` is bfloat16 where the hardware multiplies it."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def processes() -> int:
    """Return how many processes `torchrun` or `accelerate launch` started this one among."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_spread(model: Any) -> bool:
    """Return whether a model's layers are on several devices, offloaded, or cut over processes."""
    placed = getattr(model, "hf_device_map", None) or {}
    several = len(set(placed.values())) > 1 or "disk" in placed.values()
    return several or is_cut(model)


def is_cut(model: Any) -> bool:
    """Return whether a model's layers are cut over processes."""
    return (getattr(model, "_tp_size", None) or 1) > 1


def device_of(layer: Any) -> torch.device:
    """Return where a layer computes, which need not be where its weight is kept."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if device is None:  # by any of its tensors: a packed weight has other names
        tensors = (*layer.parameters(), *layer.buffers())
        found: torch.device = tensors[0].device
        return found
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
