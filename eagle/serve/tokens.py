"""What a token is in an answer: its text and its bytes; knows tokenizers, not answers."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

__all__ = ["TokenTexts"]

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_UNKNOWN = "\ufffd"


class TokenTexts:
    """Texts of single tokens, each worked out once.

    Args:
        tokenizer: the target's, or None: then a token is its number.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def text(self, token: int) -> str:
        """Return a token's text, in which U+FFFD stands for what is no whole character."""
        return self._of(token)[0]

    def bytes(self, token: int) -> list[int]:
        """Return the bytes that a token stands for."""
        return self._of(token)[1]

    def _of(self, token: int) -> tuple[str, list[int]]:
        if token not in self._known:
            self._known[token] = self._made(token)
        return self._known[token]

    def _made(self, token: int) -> tuple[str, list[int]]:
        if self._tokenizer is None:
            text = f"#{token}"
            return text, list(text.encode())
        text = str(self._tokenizer.decode([token]))
        raw = self._tokenizer.convert_ids_to_tokens(token) or ""
        if byte := _BYTE.fullmatch(raw):
            return text, [int(byte[1], 16)]
        if raw.startswith("\u2581") and not text.startswith(" "):
            text = " " + text  # a text's first token loses its space, which this need not be
        if _UNKNOWN in text:
            letters = _letters()
            if all(letter in letters for letter in raw):
                return text, [letters[letter] for letter in raw]
        return text, list(text.encode("utf-8", "replace"))


@cache
def _letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}
