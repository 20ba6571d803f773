"""Whether a spec's cycles can be captured, and what is said where they cannot; captures nothing."""

from __future__ import annotations

import logging

import torch

from eagle.errors import IncompatibleError
from eagle.spec import DEFAULT_STRATEGIES, Resolved

__all__ = ["check_capturable"]

log = logging.getLogger("eagle.runtime")


def check_capturable(resolved: Resolved, device: torch.device, *, speaks: bool = True) -> None:
    """Warn of a spec on a GPU whose cycles are not captured, unless it leaves that out itself.

    Args:
        resolved: the spec and its components.
        device: the target's.
        speaks: whether a warning is this process's to give.

    Raises:
        IncompatibleError: the spec asks for graphs where there can be none.
    """
    asked = resolved.spec.runtime.cuda_graph
    if device.type != "cuda":
        if asked is True:
            raise IncompatibleError("runtime.cuda_graph: CUDA graphs need a CUDA device")
        return
    if asked is False or resolved.capturable:
        return
    why = _why(resolved)
    if asked is True:
        raise IncompatibleError(f"runtime.cuda_graph: {why}")
    if speaks:
        log.warning(
            "cycles run eagerly, which is much slower on a GPU: %s; runtime.cuda_graph=false "
            "leaves out this warning",
            why,
        )


def _why(resolved: Resolved) -> str:
    """Return which parts keep cycles from being captured, and with which others they would be."""
    named = {role: resolved.strategies[role].name for role in resolved.on_host}
    parts = " and ".join(f"{role.value} {name!r}" for role, name in named.items())
    others = [
        f"{role.value} {DEFAULT_STRATEGIES[role]!r}"
        for role, name in named.items()
        if name != DEFAULT_STRATEGIES[role]
    ]
    # Where one is the default itself, its settings are at fault.
    enough = len(others) == len(named)
    instead = f"with {' and '.join(others)}, say," if enough else "without that"
    return (
        f"{parts}, as set here, {'reads' if len(named) == 1 else 'read'} the device on the host in "
        f"the middle of a cycle, so none can be captured as a CUDA graph; {instead} whole cycles "
        "would be"
    )
