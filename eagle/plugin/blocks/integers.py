"""Whole numbers in a head's states, which have the target's dtype; knows no head.

A state goes from cycle to cycle as the target's numbers do, and bfloat16 holds every integer up to
256 only: row 257 of a text would be taken for row 256, without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["INTEGER", "pack_integers", "unpack_integers"]

INTEGER = 3
"""Entries of a state that one number takes."""

_BASE = 128


def pack_integers(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers as digits that every dtype of a target holds exactly.

    Args:
        numbers: int64 ``[..., K]``, from 0 to 2,097,151.
        dtype: of the states.

    Returns:
        ``[..., K * INTEGER]``.

    >>> pack_integers(torch.tensor([[257, 3]]), torch.bfloat16).tolist()
    [[0.0, 2.0, 1.0, 0.0, 0.0, 3.0]]
    """
    digits = torch.stack((numbers // _BASE**2, numbers // _BASE % _BASE, numbers % _BASE), dim=-1)
    return digits.flatten(-2).to(dtype)


def unpack_integers(state: Tensor) -> Tensor:
    """Return the numbers, int64 ``[..., K]``, of what `pack_integers` made."""
    digits = state.long().view(*state.shape[:-1], state.shape[-1] // INTEGER, INTEGER)
    found: Tensor = (digits[..., 0] * _BASE + digits[..., 1]) * _BASE + digits[..., 2]
    return found
