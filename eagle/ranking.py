"""The largest of many logits: PyTorch's topk, or two short kernels where that is many."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["top_k"]

_BLOCK = 1024  # logits that one program looks through
_MOST = 16  # of larger k, passing through a block k times takes longer than sorting it


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits and their indices, in order.

    PyTorch's topk over a vocabulary is a dozen kernels on a GPU, which a draft level of one or a
    few nodes waits for. Of equal logits, which one comes first is not specified.

    Args:
        logits: ``[B, W, V]``.
        k: at most V.

    Returns:
        Values, and int64 indices, ``[B, W, k]`` each.
    """
    if logits.is_cuda and k <= _MOST and logits.dtype != torch.float64 and _TRITON:
        values, indices = _top_k(logits, k)
        return values, indices
    return logits.topk(k)


_TRITON = find_spec("triton") is not None


@torch.library.custom_op("eagle::top_k", mutates_args=())
def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from eagle.kernels import best_of_blocks, best_of_row

    logits = logits.contiguous()
    vocab = logits.shape[-1]
    rows, blocks = logits.numel() // vocab, -(-vocab // _BLOCK)
    device = logits.device
    part = torch.empty(rows, blocks, k, dtype=torch.float32, device=device)
    place = torch.empty(rows, blocks, k, dtype=torch.int32, device=device)
    values = logits.new_empty(*logits.shape[:-1], k)
    indices = torch.empty(values.shape, dtype=torch.int64, device=device)
    count = blocks * k
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        best_of_blocks[(rows, blocks)](logits, part, place, vocab, k, _BLOCK, num_warps=4)
        best_of_row[(rows,)](
            part, place, logits, values, indices, vocab, count,
            k, 1 << (count - 1).bit_length(), num_warps=4,
        )  # fmt: skip
    return values, indices


@_top_k.register_fake
def _(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = logits.new_empty(*logits.shape[:-1], k)
    return values, values.new_empty(values.shape, dtype=torch.int64)
