"""Where the checkpoint of an EAGLE head is: a shipped one, a folder, or the Hub."""

from __future__ import annotations

from pathlib import Path

from eagle.plugin import CheckpointError, find_checkpoint

__all__ = ["SHIPPED", "locate"]

SHIPPED = Path(__file__).parent / "weights"


def locate(weights: str, target: str | None, folder: Path) -> Path:
    """Return the folder of a head's checkpoint.

    Args:
        weights: ``auto`` (the shipped head for *target*), the name of a shipped head, a folder,
            or a Hub id.
        target: name of the target, as its spec gives it.
        folder: where a relative path starts.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if weights == "auto":
        if target in shipped:
            return SHIPPED / str(target)
        raise CheckpointError(
            f"no draft head is shipped for the target {target!r} (only for {', '.join(shipped)}); "
            "give its checkpoint as head.weights (a folder or a Hub id), or use the spec 'plain'"
        )
    if weights in shipped:
        return SHIPPED / weights
    return find_checkpoint(weights, folder)
