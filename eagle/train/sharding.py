"""A head's weights in the processes that train it: whole in each, or cut over all (FSDP).

Knows modules, gradients and state dicts; neither the loss nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from eagle.capabilities import TrainableHead
from eagle.train.levels import States
from eagle.train.processes import Processes

__all__ = ["Sharded", "Weights", "weights_of"]


class Weights:
    """The weights of a head, whole in every process.

    Args:
        head: whose module is trained.
        states: its training pass, compiled or not.
        processes: those that train together.

    Attributes:
        states: that pass, to be called instead.
        parameters: what the optimizer steps; their gradients are those of this process until
            `reduce` was called.
    """

    def __init__(self, head: TrainableHead, states: States, processes: Processes) -> None:
        self.module, self.states, self.processes = head.module, states, processes
        self.parameters = list(self.module.parameters())

    def reduce(self) -> None:
        """Sum the gradients over all rows of the step; all processes must call it."""
        if self.processes.count == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters]
        summed = self.processes.sum([grad for grad in gradients if grad is not None])
        for parameter, gradient in zip(self.parameters, summed, strict=True):
            parameter.grad = gradient

    def whole(self) -> AbstractContextManager[None]:
        """Return the context in which the head's module has whole weights, to run and to save."""
        return nullcontext()

    def gather(self, state: Any) -> Any:
        """Return a state dict, or a list, with whole tensors; all processes must call it."""
        return state

    def cut(self, value: Any, parameter: Tensor) -> Any:
        """Return this process's part of what belongs to a parameter."""
        return value


class Sharded(Weights):
    """The weights of a head, a part of each in every process (FSDP2, `fully_shard`).

    So are their gradients, the optimizer's moments and the moving average. Weights are whole from
    a step's first pass to the end of its backward pass. The head is one FSDP unit, whose `forward`
    is `train_states`: so a head may use its module however it likes, and what it does in
    `logits`, behind that pass, still finds whole weights.
    """

    def __init__(self, head: TrainableHead, states: States, processes: Processes) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = next(head.module.parameters()).device
        self._mesh = init_device_mesh(device.type, (processes.count,))
        unit: Any = fully_shard(_Unit(head.module, states), mesh=self._mesh)
        # The loss is a sum over processes, not the mean that FSDP takes it for.
        unit.set_gradient_divide_factor(float(processes.copies))
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other
        self._unit = unit
        super().__init__(head, unit, processes)

    def reduce(self) -> None:
        """Do nothing: the backward pass has summed and shared out the gradients."""

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Put whole weights into the module for a while; all processes must do so."""
        self._unit.reshard()
        gathered: dict[int, nn.Parameter] = {}  # one that two modules share, once
        places = [
            (owner, name, parameter)
            for owner in self.module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]
        for owner, name, parameter in places:
            if id(parameter) not in gathered:
                gathered[id(parameter)] = nn.Parameter(_whole(parameter), requires_grad=False)
            owner._parameters[name] = gathered[id(parameter)]
        try:
            yield
        finally:
            for owner, name, parameter in places:
                owner._parameters[name] = parameter

    def gather(self, state: Any) -> Any:
        """See `Weights.gather`; the tensors are the first process's alone, on its CPU."""
        if isinstance(state, dict):
            return {key: self.gather(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.gather(value) for value in state)
        if not isinstance(state, Tensor):
            return state
        whole = _whole(state.detach())
        return whole.cpu() if self.processes.main else whole.new_empty(0)

    def cut(self, value: Any, parameter: Tensor) -> Any:
        """See `Weights.cut`; what has not the parameter's shape belongs to all processes."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        assert isinstance(parameter, DTensor)
        value = value.to(parameter.device)
        # Every process has the whole of it, so none needs to be sent its part.
        return distribute_tensor(value, self._mesh, parameter.placements, src_data_rank=None)


class _Unit(nn.Module):
    """What FSDP wraps: a head's module, and its training pass as `forward`."""

    def __init__(self, module: nn.Module, states: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self._states = module, states

    def forward(self, *args: Tensor) -> Tensor:
        return self._states(*args)


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights_of(
    head: TrainableHead, states: States, processes: Processes, *, sharding: str
) -> Weights:
    """Return a head's weights as a training spec wants them; see `TrainSpec.sharding`."""
    kind = Sharded if sharding == "fsdp" and processes.count > 1 else Weights
    return kind(head, states, processes)
