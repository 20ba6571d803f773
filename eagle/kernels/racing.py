"""The noise of a text's positions, and draws by it: a race that any distribution can enter.

Every token of the vocabulary has a clock at every position of a text, exponential of rate 1; of
some weights the token wins whose clock divided by its weight is least, and that is a draw in
proportion to them. Clocks are a function of a key, the position and the token alone. So whoever
draws for a position, target or draft, in whatever cycle, races on the same clocks, and
distributions that are much alike have mostly the same winner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.kernels.topk import argmax

__all__ = ["clocks", "race", "race_at"]

# The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), its constants as signed numbers.
_GAMMA = -7046029254386353131
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685
_BITS = 52  # so that (n + 1/2) / 2**52 is a float64, and neither 0 nor 1


def clocks(keys: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Return the clocks of some tokens at some positions, independent and exponential of rate 1.

    Args:
        keys: int64 ``[B]``, of the texts.
        positions: int64 ``[B]``, one in each.
        tokens: int64 ``[V]``, their ids.

    Returns:
        float64 ``[B, V]``, above 0.
    """
    start = _mixed(_mixed(keys + _GAMMA) ^ (positions + 1) * _GAMMA)
    steps = (tokens + 1) * _GAMMA
    if keys.is_cuda or torch.compiler.is_compiling():
        return _clocks(start[:, None] + steps)
    # One row after another stays in a CPU's cache: ten times as fast as sixteen at once.
    return torch.stack([_clocks(one + steps) for one in start.unbind()])


def _clocks(numbers: Tensor) -> Tensor:
    bits = _shifted(_mixed(numbers), 64 - _BITS)
    return bits.double().add_(0.5).mul_(2.0**-_BITS).log_().neg_()


def race(weights: Tensor, clocks: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the first tokens of a race, int64 ``[..., count]``, and their paces, the winner first.

    The winner is a draw in proportion to the weights; all of them together are drawn without
    replacement. Tokens of weight zero come behind all others.

    Args:
        weights: float ``[..., V]``, not negative, not necessarily normalised.
        clocks: float64 ``[..., V]``.
        count: how many, V at most.
    """
    paces = weights / clocks
    if count > 1:
        values, places = paces.topk(count)
        return places, values
    best = argmax(paces)[..., None]
    return best, paces.gather(-1, best)


@torch.library.custom_op("eagle::race_at", mutates_args=())
def race_at(
    weights: Tensor, keys: Tensor, positions: Tensor, tokens: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Do what `clocks` and `race` do, as one operator.

    PyTorch 2.11 fails to compile these for a GPU, and code that is compiled and code that is not
    should draw the same.

    Args:
        weights: float ``[B, V]`` or ``[B, W, V]``.
        keys: int64 ``[B]``.
        positions: int64 ``[B]``.
        tokens: int64 ``[V]``.
        count: how many.

    Returns:
        See `race`.
    """
    made = clocks(keys, positions, tokens)
    return race(weights, made[:, None] if weights.dim() == 3 else made, count)


@race_at.register_fake
def _(
    weights: Tensor, keys: Tensor, positions: Tensor, tokens: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    shape = (*weights.shape[:-1], count)
    return keys.new_empty(shape), weights.new_empty(shape, dtype=torch.float64)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Return the bits of int64 numbers moved down, zeros behind them."""
    return (x >> by) & ((1 << (64 - by)) - 1)
