"""Trees known by name; knows only their rank paths."""

from __future__ import annotations

import torch

from eagle.plugin import SpecError, nearest

__all__ = ["AUTO", "NAMED", "fitting", "paths_of"]

AUTO = "auto"
"""In a spec, the tree that `fitting` names."""

NAMED: dict[str, tuple[tuple[int, ...], ...]] = {
    # `mc_sim_7b_63` of the reference implementation of arXiv 2401.15077 (SafeAILab/EAGLE,
    # eagle/model/choices.py); the numbers in that name do not count its nodes.
    "reference-25": (
        *((0,), (1,), (2,), (3,)),
        *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
        *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
        *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)),
        *((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
    ),
    # The five paths of two levels that the shipped head's candidates are accepted on most often
    # (docs/performance/cpu.md): on a CPU every further node costs time, as products are its limit.
    "likely-5": ((0,), (1,), (0, 0), (0, 1), (1, 0)),
    # The ten paths of five levels that both shipped heads are right on most often, for about eight
    # requests at once on a GPU (docs/performance/batches.md).
    "likely-10": (
        *((0,), (1,), (0, 0), (0, 1), (1, 0)),
        *((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0)),
    ),
}


def fitting(device: torch.device | None) -> str:
    """Return the name of the tree that fits a device: a small one on a CPU."""
    return "likely-5" if device is not None and device.type == "cpu" else "reference-25"


def paths_of(name: str) -> tuple[tuple[int, ...], ...]:
    """Return the rank paths of a named tree.

    Raises:
        SpecError: there is no tree of that name.
    """
    if name not in NAMED:
        raise SpecError(
            f"there is no tree named {name!r}; known: {', '.join(sorted(NAMED))}."
            f"{nearest(name, NAMED)} Or list its paths, such as [[0], [1], [0, 0]]"
        )
    return NAMED[name]
