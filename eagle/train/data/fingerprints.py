"""Tells one target from another by its configuration and a sample of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from eagle.errors import DataError
from eagle.target import Target

__all__ = ["fingerprint"]

_SAMPLE = 64  # elements of each tensor: any training changes nearly all of them


@torch.no_grad()
def fingerprint(target: Target) -> str:
    """Return a digest that two targets share only if they compute the same, in the same dtype.

    Of each tensor it reads a few elements, evenly spread, so that a large target costs no more
    time than a small one. The device makes no difference.

    Raises:
        DataError: parts of the target are offloaded, so that their weights are not at hand.
    """
    state = hashlib.sha256(str(target.dtype).encode())
    state.update(target.precision.encode() if not target.plain else b"")
    for name, tensor in _plain(target.model.state_dict()):
        if tensor.is_meta:
            raise DataError(
                f"{name} of the target {target.info.name!r} is offloaded, so that what is computed "
                "with it cannot be told from another target's; use data.features: on-the-fly, or "
                "give target.device_map devices that hold all of it"
            )
        flat = tensor.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(len(flat), _SAMPLE), dtype=torch.float64)
        chosen = flat[places.round().long().to(flat.device)].cpu().contiguous()
        state.update(f"{name} {tuple(tensor.shape)}".encode())
        state.update(chosen.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _plain(tensors: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by name, in order, and those that quantized ones are made of in their place."""
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, torch.Tensor):
            continue  # what a layer keeps of its own besides tensors
        inner = getattr(tensor, "__tensor_flatten__", None)
        if inner is None:
            yield name, tensor
        else:
            parts = {f"{name}.{part}": getattr(tensor, part) for part in inner()[0]}
            yield from _plain({key: part for key, part in parts.items() if part is not None})
