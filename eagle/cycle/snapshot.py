"""Whether an object's attributes change between two looks; it does not know what they are for."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Snapshot"]

_DEPTH = 3  # containers within containers that are looked into
_ITEMS = 4096  # of one of them; of a longer one, its length


class Snapshot:
    """What attributes are at one moment.

    Numbers, text, tensors, arrays, generators and plain containers of these are compared by value,
    anything else by being the same object.

    Args:
        attributes: as `vars` returns them.
    """

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self._kept = {name: _frozen(value) for name, value in attributes.items()}

    def changed(self, attributes: Mapping[str, Any]) -> str | None:
        """Return the name of an attribute that has changed since, come or gone, or None."""
        for name in {**self._kept, **attributes}:
            if name not in attributes or name not in self._kept:
                return name
            if not _same(self._kept[name], attributes[name]):
                return name
        return None


def _frozen(value: Any, depth: int = 0) -> Any:
    """Return a copy of what can be compared later; other things stand for themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (torch.Generator, random.Random)):
        return _Chance(value)
    if depth < _DEPTH and isinstance(value, (list, tuple, dict, set)) and len(value) <= _ITEMS:
        if isinstance(value, dict):
            return {key: _frozen(own, depth + 1) for key, own in value.items()}
        if isinstance(value, set):
            return set(value)
        return [_frozen(own, depth + 1) for own in value]
    if isinstance(value, (list, dict, set)):
        return len(value)
    return value


def _same(kept: Any, value: Any, depth: int = 0) -> bool:
    if isinstance(kept, _Chance):
        return kept.same(value)
    if isinstance(kept, Tensor):
        return isinstance(value, Tensor) and (kept is value or _equal(kept, value))
    if isinstance(kept, np.ndarray):
        return isinstance(value, np.ndarray) and np.array_equal(kept, value)
    if isinstance(kept, dict) and isinstance(value, dict):
        return kept.keys() == value.keys() and all(
            _same(own, value[key], depth + 1) for key, own in kept.items()
        )
    if isinstance(kept, list) and isinstance(value, (list, tuple)):
        return len(kept) == len(value) and all(
            _same(own, other, depth + 1) for own, other in zip(kept, value, strict=True)
        )
    if isinstance(kept, int) and isinstance(value, (list, dict, set)):
        return kept == len(value)
    if isinstance(kept, (bool, int, float, str, bytes, set)):
        return bool(kept == value) or (kept != kept and value != value)
    return kept is value


def _equal(kept: Tensor, value: Tensor) -> bool:
    same = kept.shape == value.shape and kept.dtype == value.dtype and kept.device == value.device
    return same and torch.equal(kept, value)


class _Chance:
    """The state that a generator was in."""

    def __init__(self, generator: Any) -> None:
        self._generator, self._state = generator, self._of(generator)

    def same(self, value: Any) -> bool:
        return value is self._generator and self._of(value) == self._state

    @staticmethod
    def _of(generator: Any) -> Any:
        if isinstance(generator, random.Random):
            return generator.getstate()
        return generator.get_state().numpy().tobytes()
