"""CUDA graphs by key: work is captured when first asked for and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

__all__ = ["Graphs"]

_WARM_UP = 3  # runs before a capture: the second compiles, the third runs what was compiled


class Graphs:
    """Graphs that share one memory pool; they must be replayed one at a time.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def replay(self, key: Hashable) -> None:
        """Run captured work."""
        self._graphs[key].replay()

    def capture(
        self, key: Hashable, work: Callable[[], None], carried: Sequence[Tensor] = ()
    ) -> None:
        """Capture work, which is not run: its warm-up leaves no trace in *carried*.

        Args:
            key: to replay it by.
            work: reads and writes tensors at fixed addresses and nothing on the host.
            carried: tensors that it changes, to be put back after the warm-up.

        Raises:
            RuntimeError: it reads the device on the host, or cannot be captured for another
                reason.
        """
        with torch.cuda.device(self._device):
            self._capture(key, work, carried)

    def _capture(self, key: Hashable, work: Callable[[], None], carried: Sequence[Tensor]) -> None:
        kept = [tensor.clone() for tensor in carried]
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(stream):
                for run in range(_WARM_UP):
                    with _unread() if run == _WARM_UP - 1 else nullcontext():
                        work()
                    _restore(carried, kept)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device while this one captures.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.synchronize(self._device)
            _restore(carried, kept)
        self._graphs[key] = graph


@contextmanager
def _unread() -> Iterator[None]:
    """Let whatever waits for the device raise: found here, it does not spoil a capture."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _restore(carried: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    for tensor, old in zip(carried, kept, strict=True):
        tensor.copy_(old)
