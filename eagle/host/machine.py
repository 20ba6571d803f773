"""What work runs on and with: hardware by model, its size, versions; no host, user or path."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import psutil
import torch

__all__ = [
    "free_memory",
    "hardware",
    "instructions",
    "multiprocessors",
    "shared_memory",
    "versions",
]

_PACKAGES = ("eagle-decoding", "torch", "transformers", "triton")


def hardware(device: torch.device) -> str:
    """Return the model of the device, and of a CPU how many threads compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}"


def free_memory(device: torch.device, *, reusable: bool = False) -> int:
    """Return the bytes of memory that are free.

    Args:
        device: whose.
        reusable: count what PyTorch keeps of a GPU's and nobody uses. Tensors can have it, if in
            pieces; a graph, other libraries and other processes cannot.
    """
    if device.type != "cuda":
        available: int = psutil.virtual_memory().available
        return available
    free: int = torch.cuda.mem_get_info(device)[0]
    if reusable:
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a CUDA device has; 1 for others.

    Where Triton is interpreted, programs run one after the other.
    """
    if device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that one block of threads may take on a CUDA device.

    227 KiB for others: where Triton is interpreted, there is no such limit.
    """
    if device.type != "cuda":
        return 227 * 1024
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))


def instructions() -> str:
    """Return what compiled code may make use of: the processor's model and what it can do."""
    return " ".join((platform.machine(), _processor(), _told("flags") or _told("Features")))


def _processor() -> str:
    """Return the processor's model, which Python itself does not know on Linux."""
    return _told("model name") or platform.processor() or platform.machine()


def _told(what: str) -> str:
    """Return what Linux says of the first processor, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(what))
    return next(found, "")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this library and of what it computes with."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
