"""CUDA graphs by key: work is captured when first asked for and replayed from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor

from eagle.target import Together

__all__ = ["Graphs"]

_WARM_UP = 3  # runs before a capture: the second compiles, the third runs what was compiled
_SPOILT: list[torch.cuda.CUDAGraph] = []  # captures that failed: taking one apart may fail too


class Graphs:
    """Graphs that share one memory pool; they must be replayed one at a time.

    Warm-ups and captures run on a stream of their own: workspaces of matrix products belong to a
    stream, so those of other graphs are never written while these are replayed.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        if (together := Together.joined()) is not None:
            together.hold(self)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def replay(self, key: Hashable) -> None:
        """Run captured work."""
        self._graphs[key].replay()

    def release(self) -> None:
        """Take all graphs apart, once none is running; they are not replayed any more."""
        torch.cuda.synchronize(self._device)
        while self._graphs:
            self._graphs.popitem()[1].reset()

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
            kept = [tensor.clone() for tensor in carried]
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            try:
                with torch.cuda.stream(self._stream):
                    for run in range(_WARM_UP):
                        with _unread() if run == _WARM_UP - 1 else nullcontext():
                            work()
                        _restore(carried, kept)
                    torch.cuda.synchronize(self._device)
                    self._graphs[key] = self._captured(work)
            finally:
                torch.cuda.current_stream(self._device).wait_stream(self._stream)
                _restore(carried, kept)

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # the allocator cannot give back what it holds once it captures
        # Not torch.cuda.graph(...): where a capture fails, that leaves the allocator in it
        # (pytorch/pytorch#180395). Other threads may go on using the device meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
            graph.capture_end()
        except BaseException:
            _SPOILT.append(graph)
            with suppress(RuntimeError):
                graph.capture_end()
            with suppress(RuntimeError):  # ended already, unless ending the capture failed early
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise
        return graph


@contextmanager
def _unread() -> Iterator[None]:
    """Let whatever waits for the device raise: found here, it does not spoil a capture.

    In the whole process, for as long as one warm run takes.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is announced as a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _restore(carried: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    for tensor, old in zip(carried, kept, strict=True):
        tensor.copy_(old)
