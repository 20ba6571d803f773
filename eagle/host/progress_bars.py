"""Keeps transformers from drawing progress bars: who calls this library shows progress itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

__all__ = ["without_bars"]


@contextmanager
def without_bars(*others: str, gguf: bool = False) -> Iterator[None]:
    """Leave progress bars out while weights are loaded or written; then they are as before.

    Args:
        *others: modules that draw with a ``tqdm`` of their own, where they are installed.
        gguf: whether they are in a GGUF file, for whose bar transformers 5 has no switch.
    """
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    readers: list[Any] = [import_module("transformers.modeling_gguf_pytorch_utils")] if gguf else []
    for name in others:
        with suppress(Exception):  # that it is missing is said by whoever needs it
            readers.append(import_module(name))
    drawn = {reader: reader.tqdm for reader in readers if hasattr(reader, "tqdm")}
    for reader in drawn:
        reader.tqdm = logging.tqdm  # which has
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
        for reader, own in drawn.items():
            reader.tqdm = own
