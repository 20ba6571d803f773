"""Which blocks of the caches belong to which text; knows numbers of blocks and tokens, no tensors.

Blocks of a text that ended are kept as long as nobody needs them, and found again by a text that
begins alike. Only full blocks are shared, and what is in them is never written again, so nothing
is ever copied. A block is known by its tokens, the one behind them and the block before it: the
draft head's entry for a token holds the next token too. Tokens are compared themselves, not a
digest of them: two texts that are taken for one would be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from eagle.cache.store import BLOCK

__all__ = ["Blocks", "Held"]

_Key = tuple[int, tuple[int, ...]]  # which known block is before it, and its tokens and the next


@dataclass
class _Known:
    """A block that can be found by what is in it.

    Attributes:
        block: its number.
        key: what it is found by.
        serial: what the key of a block behind it holds; never given twice.
        users: texts that read it now.
    """

    block: int
    key: _Key
    serial: int
    users: int = 0


@dataclass
class Held:
    """The blocks of one text.

    Attributes:
        blocks: their numbers, in the order of the text.
        shared: tokens, counted from the first, whose rows were there already.
    """

    blocks: list[int]
    shared: int = 0
    _known: list[_Known] = field(default_factory=list)


class Blocks:
    """Deals out blocks 1 to *total*; block 0 is nobody's (see `eagle.cache.Pages`).

    Args:
        total: how many there are.
        sharing: whether texts may have blocks in common.
    """

    def __init__(self, total: int, *, sharing: bool = True) -> None:
        self.total = total
        self._sharing = sharing
        self._free = list(range(total, 0, -1))
        self._found: dict[_Key, _Known] = {}
        self._idle: dict[_Key, _Known] = {}  # known ones without a user, the longest unused first
        self._serials = count(1)

    @property
    def free(self) -> int:
        """How many blocks no text uses; those that are only kept count as free."""
        return len(self._free) + len(self._idle)

    def take(self, prompt: Sequence[int], number: int) -> Held | None:
        """Return blocks for a text, or None where there are not enough: then wait.

        Args:
            prompt: its tokens; the last one is never among those that are there already, since
                the token that follows it comes from reading it.
            number: blocks that it needs in all.
        """
        known = self._beginning(prompt)[:number]
        for one in known:  # first, so that none of them makes room for the others
            self._use(one)
        if self.free < number - len(known):
            for one in reversed(known):
                self._leave(one)
            return None
        own = [self._one() for _ in range(number - len(known))]
        return Held([*(one.block for one in known), *own], len(known) * BLOCK, known)

    def share(self, held: Held, text: Sequence[int]) -> None:
        """Let other texts find the full blocks of a text of which all but the last token is read.

        Args:
            held: its blocks.
            text: its tokens so far.
        """
        if not self._sharing:
            return
        for place in range(len(held._known), (len(text) - 1) // BLOCK):
            key = self._key(held._known, text, place)
            if key in self._found:
                return  # another text was sooner: theirs is found, and ours is given back unshared
            one = _Known(held.blocks[place], key, next(self._serials), users=1)
            self._found[key] = one
            held._known.append(one)

    def give_back(self, held: Held, *, spoilt: bool = False) -> None:
        """Take back the blocks of a text that ended; what others may find of it is kept.

        Args:
            held: its blocks, none from then on.
            spoilt: nobody shall find anything of it, since it was computed wrongly.
        """
        for one in held._known if spoilt else ():
            if self._found.get(one.key) is one:
                del self._found[one.key]
        self._free += held.blocks[len(held._known) :]
        # Those behind first: without the one before it, a block is not found.
        for one in reversed(held._known):
            self._leave(one)
        held.blocks, held._known = [], []

    def forget(self) -> None:
        """Forget what ended texts have left, so that it is not found."""
        while self._idle:
            self._free.append(self._evicted())

    def _beginning(self, prompt: Sequence[int]) -> list[_Known]:
        known: list[_Known] = []
        while (len(known) + 1) * BLOCK < len(prompt):
            one = self._found.get(self._key(known, prompt, len(known)))
            if one is None:
                break
            known.append(one)
        return known

    @staticmethod
    def _key(known: Sequence[_Known], text: Sequence[int], place: int) -> _Key:
        before = known[place - 1].serial if place else 0
        return before, tuple(text[place * BLOCK : (place + 1) * BLOCK + 1])

    def _use(self, one: _Known) -> None:
        one.users += 1
        self._idle.pop(one.key, None)

    def _leave(self, one: _Known) -> None:
        one.users -= 1
        if one.users:
            return
        if self._found.get(one.key) is one:
            self._idle[one.key] = one
        else:
            self._free.append(one.block)

    def _one(self) -> int:
        return self._free.pop() if self._free else self._evicted()

    def _evicted(self) -> int:
        one = self._idle.pop(next(iter(self._idle)))
        del self._found[one.key]
        return one.block
