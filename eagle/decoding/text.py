"""Token ids to text as it becomes certain, token by token, and what is no text; knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Piece", "TextStream", "half_surrogate"]

_PENDING = 3  # bytes of a character of which the last is still to come
_OVERLAP = 8  # tokens that are decoded again with the next: what they say no earlier one changes
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def half_surrogate(text: str) -> int | None:
    """Return where a string that UTF-8 cannot hold has half of a surrogate pair; None if nowhere.

    It comes of JSON's escapes, and of bytes that Python took for text though they were not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


@dataclass(frozen=True)
class Piece:
    """A bit of text; `drafted` says whether an accepted draft token brought it."""

    text: str
    drafted: bool


class TextStream:
    """Decodes incrementally, and holds back text in which a stop string may be forming.

    The text is that of `tokenizer.decode` of all tokens, without special ones. A window of the last
    tokens is decoded again with each token, and only what no further token can change is text:

    - U+FFFD at the end may be a character whose other bytes are still to come;
    - a run of byte tokens (``<0x0A>``) is one text or, if it is no UTF-8 as a whole, as many U+FFFD
      as it has bytes, so it is held back until it ends;
    - the first token may lose the space in front of it, so a window begins with a token that has
      a text, and all of that is out already.

    Args:
        tokenizer: the target's, or None: then there is no text.
        stops: strings that end the text; they may span tokens and cycles.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._visible: list[bool] = []  # by token: whether a window may begin with it
        self._window = self._shown = 0  # its first token, and how much of its text is certain
        self._run: int | None = None  # the first of the byte tokens at the end
        self._held: list[Piece] = []
        self.stopped = False
        self.text = ""

    def push(self, token: int, *, drafted: bool) -> bool:
        """Take a token in; return whether it completed a stop string."""
        if self._tokenizer is None:
            return False
        byte, silent = self._is_byte(token), not self._decode([token])
        if byte and self._run is None:
            self._run = len(self._ids)
        elif not byte and not silent:  # a special token is as if it were not there
            self._run = None
        self._ids.append(token)
        self._visible.append(not byte and not silent)
        if self._run is not None and not self._stops:
            return False
        return self._settle(drafted, final=False)

    def take(self, *, final: bool) -> tuple[Piece, ...]:
        """Return the pieces that became certain; with *final*, all that there are."""
        if final and not self.stopped and self._tokenizer is not None:
            self._settle(drafted=False, final=True)
        held = "".join(piece.text for piece in self._held)
        ready = len(held) - (0 if final else self._forming(held))
        pieces: list[Piece] = []
        while self._held and len(self._held[0].text) <= ready:
            pieces.append(self._held.pop(0))
            ready -= len(pieces[-1].text)
        self.text += "".join(piece.text for piece in pieces)
        return tuple(piece for piece in pieces if piece.text)

    def _settle(self, drafted: bool, final: bool) -> bool:
        """Take in the text that became certain; return whether a stop string is complete."""
        text = self._decode(self._ids[self._window :])
        certain = len(text) if final else max(self._shown, self._certain(text))
        self._held.append(Piece(text[self._shown : certain], drafted))
        self._shown = certain
        # Were this the end, the rest would be text as well: a stop string in it makes it the end.
        if self._cut(text[certain:].partition("\ufffd")[0], drafted):
            return True
        if len(self._ids) - self._window >= 2 * _OVERLAP:
            self._advance(text)
        return False

    def _certain(self, text: str) -> int:
        """Return how much of the window's text no further token changes."""
        if self._run is not None:
            before = self._decode(self._ids[self._window : self._run])
            pairs = enumerate(zip(before, text, strict=False))
            return next((i for i, (a, b) in pairs if a != b), min(len(before), len(text)))
        return max(len(text.rstrip("\ufffd")), len(text) - _PENDING)

    def _advance(self, text: str) -> None:
        """Let the window begin later, where what it says stays the same."""
        end = len(self._ids) if self._run is None else self._run
        for first in range(min(end, len(self._ids) - _OVERLAP), self._window, -1):
            if not self._visible[first]:
                continue
            rest = self._decode(self._ids[first:])
            shown = self._shown - (len(text) - len(rest))
            # Not so if it begins within a character.
            if text.endswith(rest) and shown >= len(self._decode([self._ids[first]])):
                self._window, self._shown = first, shown
                return

    def _is_byte(self, token: int) -> bool:
        named = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        return named is not None and _BYTE.fullmatch(str(named(token))) is not None

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _cut(self, rest: str, drafted: bool) -> bool:
        """Drop what is held, and *rest* behind it, from the first stop string on, if there is one.

        Returns:
            Whether there was.
        """
        held = "".join(piece.text for piece in self._held) + rest
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if not found:
            return False
        self.stopped = True
        kept, left = [], min(found)
        for piece in (*self._held, Piece(rest, drafted)):
            kept.append(Piece(piece.text[:left], piece.drafted))
            left -= len(kept[-1].text)
        self._held = kept
        return True

    def _forming(self, held: str) -> int:
        """Return how many characters at the end of *held* may begin a stop string."""
        longest = min(len(held), max(map(len, self._stops), default=1) - 1)
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if any(s.startswith(held[-n:]) for s in self._stops)), 0)
