"""What the parts of a run's checkpoint must be; knows their types, not the run.

A pickle of tensors and plain values may hold any of them at any place, and one part that is
missing or of another type would only show in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOMENTS", "problem_with"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, beside the number of its steps."""


def problem_with(parts: Any) -> str | None:
    """Return what is wrong with the content of a checkpoint, or None.

    Args:
        parts: what was read, of any type; see `eagle.train.run.state.RunState` for what it should
        be.
    """
    if not isinstance(parts, dict):
        return f"it holds a {type(parts).__name__}, not its parts by name"
    known: dict[str, tuple[Callable[[Any], bool], str]] = {
        "step": (_count, "a number of steps"),
        "seconds": (_duration, "a duration"),
        "best": (_number, "a number"),
        "identity": (_named, "values by name"),
        "text": (_string, "a digest"),
        "head": (_finite_tensors, "finite tensors by name"),
        "optimizer": (_optimizer, "the state of AdamW"),
        "average": (_list_of_tensors, "a list of tensors"),
    }
    for name, (fits, wanted) in known.items():
        if name not in parts:
            return f"it has no part {name!r}"
        if not fits(parts[name]):
            return f"its part {name!r} is not {wanted}"
    other = [name for name in parts if name not in known]
    return f"it has an unknown part {str(other[0])!r:.40}" if other else None


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _duration(value: Any) -> bool:
    return _number(value) and value >= 0


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _tensor(value: Any) -> bool:
    """Whether it is a plain tensor, all numbers of which are there."""
    return (
        isinstance(value, Tensor)
        and not (value.is_meta or value.is_quantized)
        and value.layout == torch.strided
        and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
    )


def _real(value: Any) -> bool:
    return _tensor(value) and value.dtype.is_floating_point


def _finite_tensors(value: Any) -> bool:
    return (
        _named(value)
        and bool(value)
        and all(_tensor(one) and bool(one.isfinite().all()) for one in value.values())
    )


def _list_of_tensors(value: Any) -> bool:
    return isinstance(value, list) and all(map(_real, value))


def _optimizer(value: Any) -> bool:
    """Whether it is AdamW's state; its settings are the spec's, and not read."""
    if not _named(value) or set(value) != {"state", "param_groups"}:
        return False
    state, groups = value["state"], value["param_groups"]
    return (
        isinstance(state, dict)
        and all(_count(number) and _moments(entry) for number, entry in state.items())
        and isinstance(groups, list)
        and all(_named(group) and _numbers(group.get("params")) for group in groups)
    )


def _moments(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"step", *MOMENTS}
        and all(map(_real, entry.values()))
        and entry["step"].dim() == 0
    )


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_count, value))
