"""Tells one target from another by its configuration and a sample of its weights."""

from __future__ import annotations

import hashlib

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
    for name, tensor in sorted(target.model.state_dict().items()):
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
