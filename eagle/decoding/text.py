"""Token ids to text as it becomes certain, token by token, and what is no text; knows no model."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eagle.target import is_core

__all__ = ["LateText", "Piece", "TextStream", "Vocabulary", "half_surrogate"]

_PENDING = 3  # bytes of a character of which the last is still to come
_OVERLAP = 8  # tokens that are decoded again with the next: what they say no earlier one changes
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_BROKEN = "\ufffd"


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


class _Known(NamedTuple):
    """What is known of a token, whatever stands beside it.

    Attributes:
        text: what it is decoded to by itself; nothing where it is special, or a space that the
            first of a text loses.
        silent: it is special: as if it were not there.
        byte: it is named after a byte, as ``<0x0A>`` is.
        whole: behind whole characters this is its text, which no further token changes.
        said: that text as a piece, of a token that was not drafted and of one that was.
    """

    text: str
    silent: bool
    byte: bool
    whole: bool
    said: tuple[Piece, Piece]


class Vocabulary:
    """What a tokenizer makes of tokens, and what is known of each; get it with `of`.

    Args:
        tokenizer: transformers'. A fast one that decodes as they all do is asked for the same
            without the detour through transformers.

    Attributes:
        decode: gives the text of tokens, without special ones, as the tokenizer's own `decode`.
        fast: that takes little time, and any number of threads may do it at once.
        bytes: tokens are bytes, which are made text together: behind whole characters, it is what
            it would be by itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import decoders

        self.fast = is_core(tokenizer, "decode", "_decode")
        core = tokenizer.backend_tokenizer if self.fast else tokenizer
        self.decode: Callable[[Sequence[int]], str] = _decoding(core, fast=self.fast)
        self.bytes = self.fast and isinstance(core.decoder, decoders.ByteLevel)
        self._name: Callable[[int], Any] = getattr(
            core, "id_to_token" if self.fast else "convert_ids_to_tokens", lambda token: None
        )
        # Whoever has the tokenizer may let these be special, or no longer, at any time.
        self._changing = frozenset(core.get_added_tokens_decoder() if self.fast else ())
        self._known: dict[int, _Known] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Return the vocabulary of a tokenizer; that of a fast one is made once."""
        try:
            found = _VOCABULARIES.get(tokenizer)
            if found is None:
                found = cls(tokenizer)
                if found.fast:
                    _VOCABULARIES[tokenizer] = found
        except TypeError:  # it cannot be a key
            return cls(tokenizer)
        return found

    def known(self, token: int) -> _Known:
        """Return what is known of a token."""
        known = self._known.get(token)
        if known is None:
            text = self.decode([token])
            byte = not self.bytes and _BYTE.fullmatch(str(self._name(token))) is not None
            said = Piece(text, drafted=False), Piece(text, drafted=True)
            silent = not text and not self.decode([token, token])
            known = _Known(text, silent, byte, self.bytes and _BROKEN not in text, said)
            if token not in self._changing:
                self._known[token] = known
        return known


_VOCABULARIES: weakref.WeakKeyDictionary[Any, Vocabulary] = weakref.WeakKeyDictionary()


def _decoding(core: Any, *, fast: bool) -> Callable[[Sequence[int]], str]:
    decode, more = core.decode, {} if fast else {"clean_up_tokenization_spaces": False}
    return lambda ids: decode(ids, skip_special_tokens=True, **more)


class TextStream:
    """Decodes incrementally, and holds back text in which a stop string may be forming.

    The text is that of `tokenizer.decode` of all tokens, without special ones. Where a token by
    itself says what it says behind others (see `Vocabulary`), that is looked up. Otherwise a window
    of the last tokens is decoded again with each token, and only what no further token can change
    is text:

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
        self._vocabulary = None if tokenizer is None else Vocabulary.of(tokenizer)
        self._stops = stops
        self._ids: list[int] = []  # none where all that came before is certain, and of no concern
        self._visible: list[bool] = []  # by token: whether a window may begin with it
        self._window = self._shown = 0  # its first token, and how much of its text is certain
        self._run: int | None = None  # the first of the byte tokens at the end
        self._held: list[Piece] = []
        self._taken: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was taken so far."""
        return "".join(self._taken)

    def push(self, token: int, *, drafted: bool) -> bool:
        """Take a token in; return whether it completed a stop string."""
        if self._vocabulary is None:
            return False
        text, silent, byte, whole, said = self._vocabulary.known(token)
        if whole and not self._ids:
            if text:
                self._held.append(said[drafted])
            return bool(self._stops) and self._cut("", drafted)
        if byte and self._run is None:
            self._run = len(self._ids)
        elif not (byte or silent):
            self._run = None
        self._ids.append(token)
        self._visible.append(not byte and bool(text))
        if self._run is not None and not self._stops:
            return False
        return self._settle(self._vocabulary, drafted, final=False)

    def take(self, *, final: bool) -> tuple[Piece, ...]:
        """Return the pieces that became certain; with *final*, all that there are."""
        if final and not self.stopped and self._vocabulary is not None and self._ids:
            self._settle(self._vocabulary, drafted=False, final=True)
        pieces, self._held = self._held, []
        if self._stops and not final:
            held = "".join(piece.text for piece in pieces)
            ready, count = len(held) - self._forming(held), 0
            while count < len(pieces) and len(pieces[count].text) <= ready:
                ready -= len(pieces[count].text)
                count += 1
            pieces, self._held = pieces[:count], pieces[count:]
        self._taken += [piece.text for piece in pieces]
        return tuple([piece for piece in pieces if piece.text])

    def _settle(self, vocabulary: Vocabulary, drafted: bool, final: bool) -> bool:
        """Take in the text that became certain; return whether a stop string is complete."""
        text = vocabulary.decode(self._ids[self._window :])
        certain = len(text) if final else max(self._shown, self._certain(vocabulary, text))
        self._held.append(Piece(text[self._shown : certain], drafted))
        self._shown = certain
        # Were this the end, the rest would be text as well: a stop string in it makes it the end.
        if self._stops and self._cut(text[certain:].partition(_BROKEN)[0], drafted):
            return True
        if vocabulary.bytes and certain == len(text):
            self._ids, self._visible, self._window, self._shown = [], [], 0, 0
        elif len(self._ids) - self._window >= 2 * _OVERLAP:
            self._advance(vocabulary, text)
        return False

    def _certain(self, vocabulary: Vocabulary, text: str) -> int:
        """Return how much of the window's text no further token changes."""
        if self._run is not None:
            before = vocabulary.decode(self._ids[self._window : self._run])
            pairs = enumerate(zip(before, text, strict=False))
            return next((i for i, (a, b) in pairs if a != b), min(len(before), len(text)))
        return max(len(text.rstrip(_BROKEN)), len(text) - _PENDING)

    def _advance(self, vocabulary: Vocabulary, text: str) -> None:
        """Let the window begin later, where what it says stays the same."""
        end = len(self._ids) if self._run is None else self._run
        for first in range(min(end, len(self._ids) - _OVERLAP), self._window, -1):
            if not self._visible[first]:
                continue
            rest = vocabulary.decode(self._ids[first:])
            shown = self._shown - (len(text) - len(rest))
            # Not so if it begins within a character.
            if text.endswith(rest) and shown >= len(vocabulary.decode([self._ids[first]])):
                self._window, self._shown = first, shown
                return

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
        if not held or not any(held[-1] in stop for stop in self._stops):
            return 0
        longest = min(len(held), max(map(len, self._stops)) - 1)
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if any(s.startswith(held[-n:]) for s in self._stops)), 0)


class LateText:
    """The text of a request, cycle by cycle, which is made when somebody looks at it.

    What is said of a cycle does not depend on when, nor on who looked at which others before. One
    thread tells of cycles, any number look.

    Args:
        tokenizer: the target's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._stream = TextStream(tokenizer, ())
        self._told: list[tuple[Sequence[int], int, bool]] = []
        self._pieces: list[tuple[Piece, ...]] = []
        self._looking = threading.Lock()

    def tell(self, tokens: Sequence[int], drafted: int, *, final: bool) -> int:
        """Take in the tokens of a cycle, of which the first were drafted; return its number."""
        self._told.append((tokens, drafted, final))
        return len(self._told) - 1

    def pieces(self, cycle: int) -> tuple[Piece, ...]:
        """Return the pieces that became certain by a cycle."""
        with self._looking:
            while len(self._pieces) <= cycle:
                tokens, drafted, final = self._told[len(self._pieces)]
                for place, token in enumerate(tokens):
                    self._stream.push(token, drafted=place < drafted)
                self._pieces.append(self._stream.take(final=final))
            return self._pieces[cycle]
