"""Block sizes, splits, warps and stages of the attention kernels; knows sizes, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

__all__ = ["MAX_SPLITS", "Tiling", "choose_prompt_tiling", "choose_tiling", "most_tiles"]

MAX_SPLITS = 64
"""The kernel that joins many splits holds all of a row's at once in its registers."""

_RESIDENT = 3  # programs that a multiprocessor is given at once, at most

_SMALL = 16 * 2**20
"""Bytes that tiles may read from the L2, several of them the same ones, at hardly any cost."""


@dataclass(frozen=True)
class Tiling:
    """How the kernel is cut into programs.

    Attributes:
        block_m: rows of a tile of queries, a power of two of at least 16.
        block_n: rows of the cache per step, likewise.
        splits: parts that a slot's rows are dealt out to.
        num_warps: warps per program.
        num_stages: blocks of the cache in flight.
    """

    block_m: int
    block_n: int
    splits: int
    num_warps: int
    num_stages: int


def choose_tiling(
    *,
    slots: int,
    kv_heads: int,
    rows: int,
    head_dim: int,
    span: int,
    dtype: torch.dtype,
    multiprocessors: int,
    shared_memory: int,
) -> Tiling:
    """Return the tiling for a shape, from what the host knows: never from a length.

    Args:
        slots: B.
        kv_heads: KV heads.
        rows: query rows that share a KV head: nodes times query heads per KV head.
        head_dim: size of a head.
        span: rows of the cache that a slot may use.
        dtype: of queries, keys and values.
        multiprocessors: of the device.
        shared_memory: bytes that a program may take.
    """
    tile = min(max(16, 1 << (rows - 1).bit_length()), 128)
    wide = head_dim > 128
    if dtype == torch.float32:
        # True float32 products are made outside the tensor cores, out of registers.
        block_m, block_n, num_warps, num_stages, resident = 16, 16, 4, 3, 2
    elif tile == 16 and not wide and 8 * slots * kv_heads >= multiprocessors:
        # So few splits keep the device busy that they are joined at once.
        block_m, block_n, num_warps, num_stages, resident = 16, 64, 4, 3, 1
    elif tile == 16 and not wide:
        block_m, block_n, num_warps, num_stages, resident = 16, 32, 2, 3, _RESIDENT
    elif tile < 128:
        # Of more rows the parts take longer to join than a busier device gains.
        block_m, block_n, num_warps, num_stages, resident = tile, 64, 4, 3, 1
        if wide:
            block_n, num_warps = 32, 8 if tile == 64 else 4
    elif slots * kv_heads * -(-rows // 32) * span * head_dim * 4 <= _SMALL:
        # So little work that its latency is all that counts: many small tiles, side by side.
        block_m, block_n, num_warps, num_stages, resident = 32, 64, 4, 2, 2
    else:
        block_m, block_n, num_warps, num_stages, resident = 128, 64, 8, 3, 1
        if wide:
            block_n, num_stages = 32, 2
    tiling = _fitting(
        Tiling(block_m, block_n, 1, num_warps, num_stages), head_dim, dtype, shared_memory
    )
    programs = slots * kv_heads * -(-rows // tiling.block_m)
    splits = min(resident * multiprocessors // programs, -(-span // tiling.block_n), MAX_SPLITS)
    return replace(tiling, splits=max(1, splits))


def choose_prompt_tiling(head_dim: int, dtype: torch.dtype, shared_memory: int) -> Tiling:
    """Return the tiling of the kernel of packed prompts, which has no splits.

    Args:
        head_dim: size of a head.
        dtype: of queries, keys and values.
        shared_memory: bytes that a program may take.
    """
    if dtype == torch.float32:  # as for trees
        return _fitting(Tiling(16, 16, 1, 4, 3), head_dim, dtype, shared_memory)
    chosen = Tiling(128, 64, 1, 8, 3) if head_dim <= 128 else Tiling(64, 32, 1, 8, 2)
    return _fitting(chosen, head_dim, dtype, shared_memory)


def _fitting(tiling: Tiling, head_dim: int, dtype: torch.dtype, shared_memory: int) -> Tiling:
    """Return a tiling that fits: it was chosen on a device with more memory than most have."""
    width = max(16, 1 << (head_dim - 1).bit_length()) * dtype.itemsize
    block_m, block_n, num_stages = tiling.block_m, tiling.block_n, tiling.num_stages
    while (block_m + 2 * num_stages * block_n) * width > shared_memory:
        if num_stages > 2:
            num_stages -= 1
        elif block_n > 32:
            block_n //= 2
        elif block_m > 16:
            block_m //= 2
        else:
            break
    return replace(tiling, block_m=block_m, block_n=block_n, num_stages=num_stages)


def most_tiles(multiprocessors: int) -> int:
    """Return how many tiles of queries there may be of which each is dealt out to several splits.

    Args:
        multiprocessors: of the device.
    """
    return _RESIDENT * multiprocessors // 2
