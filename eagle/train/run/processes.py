"""The processes that train one head together; knows how they agree, not what they train.

Started by `accelerate launch` or `torchrun`, on one machine or several. The first one writes and
logs. Each takes its own rows of every step; where the target is cut over all of them, none can run
it without the others, so that all take the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from torch import Tensor

from eagle.errors import SpecError
from eagle.spec import TargetSpec
from eagle.target import loading, resolve_device

__all__ = ["Processes"]

# How long the others wait while the first one tokenises, lets the target answer, or evaluates.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """One process among those of a run.

    Gradients are summed once a step, instead of by `DistributedDataParallel`: that wraps a
    module's `forward`, and a head is trained through a compiled pass of its own around its module.
    A head is small, so there is little to gain by summing while the backward pass still runs.

    Attributes:
        count: how many there are.
        rank: which one this is, from 0.
        copies: how many of them take the same rows: 1, or all.
    """

    count: int = 1
    rank: int = 0
    copies: int = 1

    @classmethod
    def join(cls, target: TargetSpec) -> Processes:
        """Meet the other processes, if this one was started with others.

        Args:
            target: of the training spec.

        Raises:
            SpecError: it names one device for all of them, or gives all devices to each.
        """
        if loading.processes() == 1:
            return cls()
        kind = resolve_device(target.device).type
        if target.device != kind and target.device != "auto":
            raise SpecError(
                f"target.device: {target.device} would be the device of every process; leave it "
                "'auto'"
            )
        if target.device_map is not None:
            raise SpecError(
                "target.device_map: one process spreads the target over all devices that it sees, "
                f"and there are {loading.processes()} processes; start one alone, or cut the "
                "target over them with target.tp_plan: auto"
            )
        from accelerate import PartialState

        state = PartialState(cpu=kind == "cpu", timeout=_PATIENCE)
        count = state.num_processes
        return cls(count, state.process_index, count if target.tp_plan else 1)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and logs."""
        return self.rank == 0

    @property
    def measures(self) -> bool:
        """Whether this one runs the target where rows are not shared out, to measure."""
        return self.main or self.copies > 1

    @property
    def shares(self) -> int:
        """How many shares a step's rows are cut into."""
        return self.count // self.copies

    @property
    def share(self) -> int:
        """Which of them is this process's, from 0."""
        return self.rank // self.copies

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
        """Return the sum of each tensor over all shares of the rows; all processes must call it.

        Those with the same rows count as one. They have the same tensors but for the order in
        which their devices add up, and have the same to the bit afterwards.
        """
        if self.count == 1:
            return list(tensors)
        from accelerate.utils import reduce

        summed = reduce(list(tensors), reduction="sum")
        return [tensor / self.copies if self.copies > 1 else tensor for tensor in summed]

    def firsts(self, tensor: Tensor) -> Tensor:
        """Return the tensor of the first process; all must call it."""
        if self.count == 1:
            return tensor
        from accelerate.utils import broadcast

        out: Tensor = broadcast(tensor.clone())
        return out

    def part(self) -> None:
        """Wait until all are done, and leave them."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
            PartialState().destroy_process_group()
