"""`assert_capturable`: holds work in a cycle to what it promised, on any device.

It looks at the operators that work calls, wherever they are called from, and at PyTorch's own
generator; it does not know what the work is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostRead", "assert_capturable", "no_chance_of_its_own", "no_host_reads"]

# What waits for the device and hands a value to the host: `.item()`, `.tolist()`, `if tensor:`.
_READS = ("_local_scalar_dense", "equal", "is_nonzero", "allclose", "item")
# What hands values to the host without an operator, on a CPU, where nothing is moved for it.
_HANDED = {
    getattr(torch.Tensor, name): f".{name}()"
    for name in ("numpy", "tolist", "cpu", "item", "__array__", "__dlpack__")
}
# What makes shapes that depend on values.
_SHAPES = (
    *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "unique", "unique_dim", "_unique"),
    *("_unique2", "unique_consecutive", "unique_dim_consecutive", "bincount", "combinations"),
)


class HostRead(AssertionError):  # noqa: N818 - as AssertionError itself
    """Work in a cycle read a device value on the host, or let a shape depend on one."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _READS:
            raise HostRead(
                f"a device value was read on the host (aten.{name}), as .item(), .tolist() and "
                "`if tensor:` do"
            )
        if name in _SHAPES or (name == "repeat_interleave" and _varies(args, kwargs or {})):
            raise HostRead(f"a shape depends on a device value (aten.{name})")
        if name == "index" and any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
            for one in args[1]
        ):
            raise HostRead("a shape depends on a device value (indexing with a mask)")
        return func(*args, **(kwargs or {}))


class _WatchMethods(TorchFunctionMode):
    """Watches what tensors are asked, which operators on a CPU do not show."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call = _HANDED.get(func)
        if func is torch.Tensor.to and _on_the_host(*args[1:2], (kwargs or {}).get("device")):
            call = '.to("cpu")'
        if call is not None:
            raise HostRead(f"a device value was read on the host ({call})")
        return func(*args, **(kwargs or {}))


def _on_the_host(*given: Any) -> bool:
    """Whether the CPU is named; a `torch.device` is, on a CPU, the one that tensors are on."""
    return any(isinstance(one, str) and one.split(":")[0] == "cpu" for one in given)


def _varies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    counts = [one for one in args if isinstance(one, torch.Tensor)]
    return len(counts) > 1 or (len(args) == 1 and kwargs.get("output_size") is None)


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Let whatever reads a device value on the host raise `HostRead`, on a CPU too.

    What a tensor hands over without an operator is caught as well: `.numpy()`, `.cpu()`,
    `.to("cpu")`. What is sent to a `torch.device` that is the CPU is not: work that runs there
    sends its tensors to the target's own device like this.
    """
    with _WatchMethods(), _Watch():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def no_chance_of_its_own(what: str) -> Iterator[None]:
    """Check that *what* takes all chance from `Draws`, none from PyTorch's generator of the CPU."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before), (
        f"{what} drew from PyTorch's own generator, not from `draws`: a seed would not give its "
        "text again, and no proof would see what was drawn"
    )


def assert_capturable(work: Callable[[], Any], *, warm_up: int = 1) -> None:
    """Check that work in a cycle reads nothing on the host and has shapes that do not vary.

    What a component makes once (index tensors, say) is made in the warm-up, as in a decoder.

    Args:
        work: such as ``lambda: builder.build(drafter, draws)``.
        warm_up: how often it runs unwatched before.

    Raises:
        HostRead: an `AssertionError` that says which operator did it.
    """
    for _ in range(warm_up):
        work()
    with no_host_reads():
        work()
