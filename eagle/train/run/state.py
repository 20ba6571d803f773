"""What a run needs to go on exactly where it was: one file, replaced as a whole.

Noise and the order of the text follow from the seed and the step, so the step is all that has to
be kept of them. Knows files and state dicts; does not train.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from eagle.errors import CheckpointError, SpecError
from eagle.host import replacing

__all__ = ["RunState", "check_identity"]


@dataclass
class RunState:
    """A run after some steps.

    Attributes:
        step: steps done.
        seconds: time trained, over all processes.
        best: the best tau so far, by the first tree, or -1.
        identity: what a run that goes on must share; see `TrainSpec.identity`.
        text: digest of the training text.
        head: state dict of the head's module.
        optimizer: state dict of the optimizer.
        average: the weights' moving average, where there is one.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    identity: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    head: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    average: list[torch.Tensor] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it; a reader sees the old file or the new one, whenever the process is killed.

        Raises:
            CheckpointError: it could not be written; the old file is untouched.
        """
        try:
            with replacing(path) as place, place.open("wb") as file:
                torch.save(asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
        # torch turns a full disk into a RuntimeError of its zip writer.
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint could not be written to {path}: {error}. The one before it is "
                "untouched; make room and run again with --resume"
            ) from error

    @classmethod
    def load(cls, path: Path) -> RunState:
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: it is damaged, or something else.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of a training run, or damaged: {error}"
            ) from error


def check_identity(state: RunState, identity: dict[str, Any], text: str, path: Path) -> None:
    """Compare a run with the one that it is to go on from.

    Raises:
        SpecError: naming every key that differs.
    """
    old, new = _flat(state.identity), _flat(identity)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if state.text != text:
        changed.append("the training text")
    if changed:
        raise SpecError(
            f"{path} belongs to a run with another {', '.join(changed)}; give this run an output "
            "folder of its own, or start it from the other's head (start: checkpoint)"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = [_flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items()]
        return {key: inner for part in parts for key, inner in part.items()}
    return {prefix: value}
