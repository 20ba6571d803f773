"""Triton's interpreter, twice as quick: what it does over and over is done once."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod

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
    builder = interpreter.interpreter_builder
    # Whether integers overflow is found out and then not told, but where one debugs.
    told = replace(builder.options, sanitize_overflow=builder.options.debug)
    monkeypatch.setattr(builder, "options", told)
    original, known = interpreter._get_np_dtype, {}

    def numpy_dtype(dtype):  # which makes a table of all of them, for each that it is asked for
        if dtype.name not in known:
            known[dtype.name] = original(dtype)
        return known[dtype.name]

    monkeypatch.setattr(interpreter, "_get_np_dtype", numpy_dtype)
    remember(monkeypatch, interpreter.tl.core)


def remember(patch, core):
    """Have types of blocks, and the shapes of tensors, made once each."""
    shapes, blocks, made = {}, {}, core.block_type.__init__

    def tensor(self, handle, type):
        shape = type.shape if type.is_block() else ()
        if shape not in shapes:
            sizes = core.tuple([core.constexpr(size) for size in shape])
            shapes[shape] = sizes, core.constexpr(prod(shape))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[shape]

    def block(self, element_ty, shape):
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in blocks:
            made(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key])

    patch.setattr(core.tensor, "__init__", tensor)
    patch.setattr(core.block_type, "__init__", block)


def move(value):
    """Return a tensor on the device of the kernels; anything else as it is."""
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value
