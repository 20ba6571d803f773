"""Trees known by name; knows only their rank paths."""

from __future__ import annotations

from eagle.errors import SpecError, nearest

__all__ = ["NAMED", "paths_of"]

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
}


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
