"""What captured passes over prompts read, at fixed addresses; knows pieces, and runs nothing.

A graph serves any pieces: their number and sizes are numbers on the device. What is left of its
segments are empty ones behind the last piece, of the same slot, which say once more what that one
says; entries behind all pieces are written to the row behind its last, where the next pass writes
before it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from eagle.cycle import GREEDY, Packed, Piece, Read
from eagle.plugin import Sampling, Step

__all__ = ["SIZES", "PackedInputs", "passes", "size_of"]

SIZES = (32, 64, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of prompts that are read in one captured pass."""

# Of one pass, at most. No number of segments is one of tokens: compilers take sizes that are equal
# where they look first for the same size.
_PIECES = 30


def passes(pieces: Sequence[Piece[Read]]) -> Iterator[tuple[int, list[Piece[Read]]]]:
    """Share pieces out among passes, in order; yield those of each, and which the first is of.

    A piece that is cut goes on in the next pass.
    """
    own: list[Piece[Read]] = []
    first, left = 0, SIZES[-1]
    for number, piece in enumerate(pieces):
        start = piece.start
        while start < piece.end:
            if not left or len(own) == _PIECES:
                yield first, own
                own, first, left = [], number, SIZES[-1]
            end = min(piece.end, start + left)
            own.append(replace(piece, start=start, end=end))
            left -= end - start
            start = end
    if own:
        yield first, own


def size_of(pieces: Sequence[Piece[Read]]) -> int:
    """Return for how many tokens the graph is that reads pieces of one pass."""
    count = sum(one.end - one.start for one in pieces)
    return next(size for size in SIZES if size >= count)


class PackedInputs:
    """What a captured pass over prompts reads.

    Args:
        device: a CUDA device.
        slots: how many there are.

    Attributes:
        sampling: the parameters of the pieces' requests.
        uniforms: float64 ``[S, 1]``, of their first tokens.
    """

    def __init__(self, device: torch.device, slots: int) -> None:
        self._segments = min(slots, _PIECES)
        # Four numbers of each segment, then four of each token.
        count = 4 * (self._segments + SIZES[-1])
        self._numbers = torch.zeros(count, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(self._segments, 1, dtype=torch.float64, device=device)
        self.sampling = Sampling.of([GREEDY] * self._segments, device)

    def load(self, pieces: Sequence[Piece[Read]], uniforms: Tensor, size: int) -> None:
        """Send what one pass reads.

        Args:
            pieces: of one pass (see `passes`).
            uniforms: float64 ``[n, 1]`` of n pieces, on the device.
            size: tokens of the pass, padding included.
        """
        last, spare = pieces[-1], self._segments - len(pieces)
        counts = [one.end - one.start for one in pieces]
        total = sum(counts)
        padding = size - total
        texts = [one.text for one in pieces]
        numbers = [
            *(one.slot for one in pieces), *[last.slot] * spare,
            *(one.start for one in pieces), *[last.end] * spare,
            *accumulate(counts), *[total] * spare,
            *(one.last for one in pieces), *[last.last] * spare,
            *chain.from_iterable([number] * count for number, count in enumerate(counts)),
            *[len(pieces) - 1] * padding,
            *chain.from_iterable(range(one.start, one.end) for one in pieces),
            *[last.end] * padding,
            *(token for text in texts for token in text[:-1]), *[0] * padding,
            *(token for text in texts for token in text[1:]), *[0] * padding,
        ]  # fmt: skip
        # Nobody waits until it has arrived: the pass before this one may still be read.
        self._numbers[: len(numbers)].copy_(torch.tensor(numbers), non_blocking=True)
        self.uniforms[: len(pieces)].copy_(uniforms)
        self.uniforms[len(pieces) :].copy_(uniforms[-1:].expand(spare, 1))
        params = [one.params for one in pieces]
        self.sampling = self.sampling.take(Sampling.of([*params, *params[-1:] * spare], "cpu"))

    def packed(self, size: int) -> Packed:
        """Return what a pass over *size* tokens reads, by what was sent."""
        few = 4 * self._segments
        slots, lengths, ends, ended = self._numbers[:few].view(4, -1)
        owners, rows, tokens, follow = self._numbers[few : few + 4 * size].view(4, -1)
        step = Step.of_segments(slots, lengths, ends, owners, rows)
        return Packed(tokens[None], follow[None], step, ended > 0)
