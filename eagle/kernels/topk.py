"""The largest of many logits: PyTorch's own operators, or what finds them sooner."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["argmax", "top_k"]

_BLOCK = 1024  # logits that one program looks through
_CPU_BLOCKS = (256, 128, 64)  # the first that divides a vocabulary
_MOST = 16  # of larger k, passing through a block k times takes longer than sorting it


def argmax(logits: Tensor) -> Tensor:
    """Return the index of the largest logit, the first of equals; NaN is the largest.

    PyTorch's argmax over a vocabulary takes four times as long on a CPU as its maximum, which
    gives the same index: 156 and 35 us for one row of 49,152 in bfloat16.

    Args:
        logits: ``[..., V]``.

    Returns:
        int64 ``[...]``.
    """
    return logits.max(-1).indices if logits.device.type == "cpu" else logits.argmax(-1)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits and their indices, in order.

    PyTorch's topk over a vocabulary is a dozen kernels on a GPU, which a draft level of one or a
    few nodes waits for; on a CPU it moves all logits, where looking for the blocks that hold the
    largest ones takes half the time. Of equal logits, which one comes first is not specified.

    Args:
        logits: ``[B, W, V]``.
        k: at most V.

    Returns:
        Values, and int64 indices, ``[B, W, k]`` each.
    """
    if logits.is_cuda and k <= _MOST and logits.dtype != torch.float64 and _TRITON:
        values, indices = _top_k(logits, k)
        return values, indices
    size = next((size for size in _CPU_BLOCKS if logits.shape[-1] % size == 0), 0)
    if logits.device.type == "cpu" and size and k * size < logits.shape[-1]:
        return _top_k_of_blocks(logits, k, size)
    return logits.topk(k)


def _top_k_of_blocks(logits: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
    blocks = logits.reshape(*logits.shape[:-1], -1, size)
    chosen = blocks.amax(-1).topk(k).indices
    inside = blocks.gather(-2, chosen[..., None].expand(*chosen.shape, size)).flatten(-2)
    values, place = inside.topk(k)
    return values, chosen.gather(-1, place // size) * size + place % size


_TRITON = find_spec("triton") is not None


@torch.library.custom_op("eagle::top_k", mutates_args=())
def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from eagle.kernels.sampling_triton import best_of_blocks, best_of_row

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
