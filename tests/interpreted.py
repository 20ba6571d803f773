"""Triton's interpreter, twice as quick: it prepares its language once a launch, not once a call."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_triton = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="no Triton here: neither CUDA nor the interpreter"
)
# The interpreter computes with NumPy, which warns where a device does not.
quiet = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Import this where kernels run often."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    prepare, prepared = getattr(interpreter, "_patch_lang", None), set()
    if prepare is None:
        return

    class Scope:
        def __init__(self, scope):
            self._scope = scope

        def restore(self):
            prepared.clear()
            self._scope.restore()

    def once(fn):
        module = id(fn.__globals__)  # each sees parts of the language of its own
        if module in prepared:
            return None
        prepared.add(module)
        return Scope(prepare(fn))

    monkeypatch.setattr(interpreter, "_patch_lang", once)


def move(value):
    """Return a tensor on the device of the kernels; anything else as it is."""
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value
