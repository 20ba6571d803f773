"""Token ids to text as it becomes certain, token by token, and what is no text; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Piece", "TextStream", "half_surrogate"]

_LONGEST_CHARACTER = 8  # byte-level tokens that one character can need, with room to spare


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

    Args:
        tokenizer: the target's, or None: then there is no text.
        stops: strings that end the text; they may span tokens and cycles.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._context = self._settled = 0
        self._held: list[Piece] = []
        self.stopped = False
        self.text = ""

    def push(self, token: int, *, drafted: bool) -> bool:
        """Take a token in; return whether it completed a stop string."""
        if self._tokenizer is None:
            return False
        self._ids.append(token)
        return self._settle(drafted, wait=True)

    def take(self, *, final: bool) -> tuple[Piece, ...]:
        """Return the pieces that became certain; with *final*, all that there are."""
        if final and self._settled < len(self._ids):
            self._settle(drafted=False, wait=False)
        held = "".join(piece.text for piece in self._held)
        ready = len(held) - (0 if final else self._forming(held))
        pieces: list[Piece] = []
        while self._held and len(self._held[0].text) <= ready:
            pieces.append(self._held.pop(0))
            ready -= len(pieces[-1].text)
        self.text += "".join(piece.text for piece in pieces)
        return tuple(piece for piece in pieces if piece.text)

    def _settle(self, drafted: bool, wait: bool) -> bool:
        # Decoded together with the ids before, since some tokenizers space a token by the one in
        # front of it. U+FFFD at the end is a character whose other bytes are still to come.
        before = self._decode(self._ids[self._context : self._settled])
        now = self._decode(self._ids[self._context :])
        pending = len(self._ids) - self._settled
        if wait and now.endswith("\ufffd") and pending < _LONGEST_CHARACTER:
            return False
        self._context, self._settled = self._settled, len(self._ids)
        self._held.append(Piece(now[len(before) :], drafted))
        return self._cut()

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _cut(self) -> bool:
        """Drop what is held from the first stop string on; return whether there was one."""
        held = "".join(piece.text for piece in self._held)
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if not found:
            return False
        self.stopped = True
        kept, left = [], min(found)
        for piece in self._held:
            kept.append(Piece(piece.text[:left], piece.drafted))
            left -= len(kept[-1].text)
        self._held = kept
        return True

    def _forming(self, held: str) -> int:
        """Return how many characters at the end of *held* may begin a stop string."""
        longest = min(len(held), max(map(len, self._stops), default=1) - 1)
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if any(s.startswith(held[-n:]) for s in self._stops)), 0)
