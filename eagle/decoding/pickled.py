"""Logits processors as another process can have them; knows pickles, not how they travel."""

from __future__ import annotations

import io
import pickle
from typing import Any

from eagle.cycle import Processors
from eagle.errors import RequestError, reason

__all__ = ["packed", "unpacked"]

_TOKENIZER = "tokenizer"


def packed(given: Processors, tokenizer: Any) -> bytes:
    """Return a request's logits processors as they were given, pickled.

    Args:
        given: by whoever asked.
        tokenizer: the target's, which every process has, so it is left out.

    Raises:
        RequestError: they cannot be pickled.
    """
    if not given:
        return b""
    file = io.BytesIO()
    try:
        _Packer(file, tokenizer).dump(tuple(given))
    except Exception as error:  # of any kind: it is what their authors wrote
        raise RequestError(
            "the target is held by several processes, which all ask a request's logits "
            f"processors, and these cannot be pickled for them ({reason(error)}); define their "
            "classes in a module"
        ) from error
    return file.getvalue()


def unpacked(data: bytes, tokenizer: Any) -> Processors:
    """Return what `packed` was given."""
    found: Processors = _Unpacker(io.BytesIO(data), tokenizer).load() if data else ()
    return found


class _Packer(pickle.Pickler):
    """Names what every process has, instead of pickling it."""

    def __init__(self, file: io.BytesIO, tokenizer: Any) -> None:
        super().__init__(file)
        self._tokenizer = tokenizer

    def persistent_id(self, thing: Any) -> str | None:
        return _TOKENIZER if thing is self._tokenizer and thing is not None else None


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tokenizer: Any) -> None:
        super().__init__(file)
        self._tokenizer = tokenizer

    def persistent_load(self, key: Any) -> Any:
        if key != _TOKENIZER:
            raise pickle.UnpicklingError(f"{key!r} is nothing that every process has")
        return self._tokenizer
