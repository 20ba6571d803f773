"""Where the checkpoint of an EAGLE head is: a shipped one, a folder, or the Hub."""

from __future__ import annotations

from pathlib import Path

from eagle.plugin import CheckpointError, find_checkpoint

__all__ = ["SHIPPED", "locate"]

SHIPPED = Path(__file__).parent / "weights"
_NAMES = {"eagle3": "{}-eagle3", "eagle": "{}"}
"""By method, what the shipped head of a target is called, the better one first."""


def locate(weights: str, target: str | None, folder: Path, method: str | None = None) -> Path:
    """Return the folder of a head's checkpoint.

    Args:
        weights: ``auto`` (the shipped head for *target*), the name of a shipped head, a folder,
            or a Hub id.
        target: name of the target, as its spec gives it.
        folder: where a relative path starts.
        method: of ``auto``: ``eagle`` or ``eagle3``, or None for the better one that there is.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if weights == "auto":
        wanted = [_NAMES[method]] if method else list(_NAMES.values())
        for name in (pattern.format(target) for pattern in wanted):
            if name in shipped:
                return SHIPPED / name
        known = ", ".join(name for name in shipped if not name.endswith("-eagle3"))
        raise CheckpointError(
            f"no draft head is shipped for the target {target!r} (only for {known}); "
            "give its checkpoint as head.weights (a folder or a Hub id), or use the spec 'plain'"
        )
    if weights in shipped:
        return SHIPPED / weights
    return find_checkpoint(weights, folder)
