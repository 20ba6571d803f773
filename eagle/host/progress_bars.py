"""Keeps transformers from drawing progress bars: who calls this library shows progress itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

__all__ = ["without_bars"]


@contextmanager
def without_bars(*, gguf: bool = False) -> Iterator[None]:
    """Leave progress bars out while weights are loaded or written; then they are as before.

    Args:
        gguf: whether they are in a GGUF file, for whose bar transformers 5 has no switch.
    """
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils") if gguf else None
    drawn = getattr(reader, "tqdm", None)
    if drawn is not None:
        reader.tqdm = logging.tqdm  # which has
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
        if drawn is not None:
            reader.tqdm = drawn
