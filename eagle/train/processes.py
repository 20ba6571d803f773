"""The processes that train one head together; knows how they agree, not what they train.

Started by `accelerate launch` or `torchrun`, on one machine or several. The first one writes, logs
and evaluates; each takes its own rows of every step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from torch import Tensor

from eagle.errors import SpecError
from eagle.target import resolve_device

__all__ = ["Processes"]

# How long the others wait while the first one tokenises, lets the target answer, or evaluates.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """One process among those of a run.

    Gradients are summed here, once a step, instead of by `DistributedDataParallel`: that wraps a
    module's `forward`, and a head is trained through a compiled pass of its own around its module.
    A head is small, so there is little to gain by summing while the backward pass still runs.

    Attributes:
        count: how many there are.
        rank: which one this is, from 0.
    """

    count: int = 1
    rank: int = 0

    @classmethod
    def join(cls, device: str) -> Processes:
        """Meet the other processes, if this one was started with others.

        Args:
            device: `target.device` of the spec.

        Raises:
            SpecError: it names one device for all of them.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        kind = resolve_device(device).type
        if device != kind and device != "auto":
            raise SpecError(
                f"target.device: {device} would be the device of every process; leave it 'auto'"
            )
        from accelerate import PartialState

        state = PartialState(cpu=kind == "cpu", timeout=_PATIENCE)
        return cls(state.num_processes, state.process_index)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes, logs and evaluates."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process do something before the others do it."""
        if self.count == 1:
            yield
            return
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of each tensor over all processes; all must call it."""
        if self.count == 1:
            return list(tensors)
        from accelerate.utils import reduce

        return list(reduce(list(tensors), reduction="sum"))

    def part(self) -> None:
        """Wait until all are done, and leave them."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
            PartialState().destroy_process_group()
