"""What a run needs to go on exactly where it was: one file, replaced as a whole.

Noise and the order of the text follow from the seed and the step, so the step is all that has to
be kept of them. Knows files and state dicts; does not train.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle.errors import CheckpointError, SpecError, reason
from eagle.host import disk_error, replacing
from eagle.train.run.parts import MOMENTS, problem_with

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
    average: list[Tensor] = field(default_factory=list)

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
        # torch turns a full disk into a RuntimeError of its zip writer, which tells a place in it.
        except (OSError, RuntimeError) as error:
            found = disk_error(error)
            why = "the disk took a part of it" if found is None else found.strerror or str(found)
            before = "The one before it is untouched; make" if path.exists() else "Make"
            raise CheckpointError(
                f"the checkpoint could not be written to {path}: {why}. {before} room and run "
                "again with --resume"
            ) from error

    @classmethod
    def load(cls, path: Path) -> RunState:
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: it is damaged, something else, or lacks or mistypes a part.
        """
        try:
            with warnings.catch_warnings():  # about tensors that are refused right after
                warnings.simplefilter("ignore")
                parts = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises any kind
            raise CheckpointError(
                f"{path} is not a checkpoint of a training run, or damaged: {reason(error, 200)}"
            ) from error
        if problem := problem_with(parts):
            raise CheckpointError(f"{path} is not a checkpoint of a training run: {problem}")
        return cls(**parts)

    def check_fit(
        self, head: Mapping[str, Tensor], numbered: Sequence[Tensor], averaged: Sequence[Tensor]
    ) -> None:
        """Compare its sizes with those of the run that is to go on from it.

        Args:
            head: the state of the head's module.
            numbered: its parameters, as the optimizer numbers them.
            averaged: those whose moving average is kept, in order.

        Raises:
            CheckpointError: the head, the moments or the average are of other sizes.
        """
        groups, moments = self.optimizer["param_groups"], self.optimizer["state"]
        numbers = [number for group in groups for number in group["params"]]
        others = {
            "head": _sizes(self.head) != _sizes(head),
            "optimizer": numbers != list(range(len(numbered)))
            or not set(moments) <= set(numbers)
            or (self.step > 0 and not moments)
            or any(
                entry[key].shape != numbered[number].shape
                for number, entry in moments.items()
                for key in MOMENTS
            ),
            "average": bool(self.average and averaged)
            and [tuple(t.shape) for t in self.average] != [tuple(t.shape) for t in averaged],
        }
        wrong = [name for name, other in others.items() if other]
        if wrong:
            raise CheckpointError(
                f"the checkpoint's part {wrong[0]!r} is not of the head that this run trains; "
                "give the run another output folder, or start it anew"
            )


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_identity(state: RunState, identity: dict[str, Any], text: str, path: Path) -> None:
    """Compare a run with the one that it is to go on from.

    Raises:
        SpecError: naming every key that differs.
    """
    old, new = _flat(state.identity), _flat(identity)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if "batch" in changed:  # which may be what it was, with another number of processes
        changed[changed.index("batch")] = (
            f"batch ({old.get('batch')} rows a step, with accumulate and over all processes, and "
            f"here {new.get('batch')})"
        )
    if state.text != text:
        changed.append("training text")
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
