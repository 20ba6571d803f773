"""Prompts that are being read: which pieces of which come next; knows requests, no device.

A pass reads so many tokens at most, so that those who decode wait for no more than that. Prompts
share it: the oldest has at least half, so that it gets done, and the rest goes to those that need
least, so that short ones do not wait for a long one.
"""

from __future__ import annotations

from collections.abc import Iterable

from eagle.cycle import Piece
from eagle.decoding.requests import Request

__all__ = ["Reader", "apart"]

_FULL = 256  # tokens, by which a pass takes longer than reading the target's weights does
_FEW = 8  # one in so many slots: those that a pass is worth it for
_PATIENCE = 8  # cycles that a prompt waits for others, at most


class Reader:
    """Prompts that are being read, in the order in which they came.

    Args:
        budget: tokens of one pass, at most.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._waited = budget, 0
        self._waiting: dict[int, Piece[Request]] = {}  # what is left of each, by slot

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def slots(self) -> Iterable[int]:
        """The slots that prompts are being read into."""
        return self._waiting.keys()

    def add(self, slot: int, request: Request, start: int = 0) -> None:
        """Take in a prompt, of which some rows may be there already."""
        self._waiting[slot] = Piece(slot, request, start, len(request.prompt))

    def request(self, slot: int) -> Request:
        """Return whose prompt is being read into a slot."""
        return self._waiting[slot].request

    def remove(self, slot: int) -> None:
        """Leave a prompt unread from here on."""
        self._waiting.pop(slot, None)

    def worth(self, slots: int) -> bool:
        """Whether prompts are to be read behind a cycle now, rather than with more of them later.

        A pass over few tokens takes as long as reading the target's weights. So where many slots
        are decoded, an eighth of them is better read into at once: by then their idling has cost
        about what another pass would.

        Args:
            slots: how many it is an eighth of.
        """
        few = len(self._waiting) * _FEW < slots and sum(map(_size, self._waiting.values())) < _FULL
        self._waited = self._waited + 1 if few else 0
        return not few or self._waited > _PATIENCE

    def take(self) -> list[Piece[Request]]:
        """Return the pieces of the next pass, in the order of slots; they count as read."""
        self._waited = 0
        if not self._waiting:
            return []
        oldest, *others = self._waiting.values()
        left = self._budget
        share = {oldest.slot: min(_size(oldest), max(left // 2, 1) if others else left)}
        left -= share[oldest.slot]
        for piece in sorted(others, key=_size):
            share[piece.slot] = min(_size(piece), left)
            left -= share[piece.slot]
        share[oldest.slot] += min(_size(oldest) - share[oldest.slot], left)
        pieces = []
        for slot, size in sorted(share.items()):
            if not size:
                continue
            whole = self._waiting.pop(slot)
            pieces.append(Piece(slot, whole.request, whole.start, whole.start + size))
            if size < _size(whole):
                self._waiting[slot] = Piece(slot, whole.request, whole.start + size, whole.end)
        # What is left of a prompt keeps its place in the order of arrival.
        order = {piece.slot: place for place, piece in enumerate((oldest, *others))}
        self._waiting = dict(sorted(self._waiting.items(), key=lambda item: order[item[0]]))
        return pieces


def apart(pieces: Iterable[Piece[Request]]) -> list[list[Piece[Request]]]:
    """Return pieces in groups, in order: those with logits processors, run on the host, alone."""
    groups: list[list[Piece[Request]]] = []
    for piece in pieces:
        if groups and not (piece.request.processors or groups[-1][0].request.processors):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _size(piece: Piece[Request]) -> int:
    return piece.end - piece.start
