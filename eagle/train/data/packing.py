"""Batches of rows of fixed length, cut from conversations laid end to end in random order.

Every batch follows from its number and the seed alone, so that a run can be resumed anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle.errors import DataError
from eagle.train.data.corpus import Corpus

__all__ = ["Batch", "Packer", "visibility"]


@dataclass(frozen=True)
class Batch:
    """B packed rows of L tokens.

    Attributes:
        tokens: int64 ``[B, L]``.
        documents: int64 ``[B, L]``, which conversation of its row a token belongs to.
        positions: int64 ``[B, L]``, position within its conversation, from 0.
        entries: int64 ``[E]``, which of the B * L entries have a loss, in ascending order; padded
            with zeros to a multiple of the packer's chunk. Entry t of a row pairs the feature at t
            with the token at t + 1 and predicts the feature at t + 1.
        weights: float32 ``[E]``, 1, or 0 for padding.
        count: how many weights are 1.
    """

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    entries: Tensor
    weights: Tensor
    count: int

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        moved = {
            name: value.pin_memory().to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Batch(**moved, count=self.count)


class Packer:
    """Makes the batches of a run.

    Each epoch lays the conversations end to end in an order of its own and cuts rows from them:
    nothing is padded, and a conversation that is cut goes on in the next row as a text of its own,
    at another place in each epoch.

    Args:
        corpus: the text.
        documents: numbers of the conversations to use.
        length: L, tokens of a row.
        batch: B, rows of a batch.
        chunk: what the number of entries is padded to a multiple of, for code that is compiled
            for one shape; 1 pads nothing.
        seed: of the order.
        repack: cut anew in every epoch. Otherwise rows are cut once, and each epoch has them in
            an order of its own, so that what was computed for a row can be kept.

    Raises:
        DataError: there is not enough text for one row.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: NDArray[np.int64],
        *,
        length: int,
        batch: int,
        chunk: int,
        seed: int,
        repack: bool = True,
    ) -> None:
        self._corpus, self._documents, self._length = corpus, documents, length
        self._batch, self._chunk, self._seed, self._repack = batch, chunk, seed, repack
        self.tokens = int((corpus.ends - corpus.starts)[documents].sum())
        self.rows = self.tokens // length
        if self.rows == 0:
            raise DataError(
                f"the training text has {self.tokens} tokens, not enough for one row of {length}; "
                "lower data.length, or give more text"
            )
        # A predicted feature is worth something where it predicts an answer's token and the next
        # token is the answer's too: what follows its end is never drafted.
        self._learn = corpus.answers.copy()
        self._learn[:-1] &= corpus.answers[1:]
        self._learn[corpus.ends - 1] = False
        self._order = lru_cache(maxsize=2)(self._epoch)
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        return self.of(self.numbers(step))

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of the rows of a step's batch; `of` makes a batch of them.

        Rows are numbered through all epochs; without `repack`, through the first.
        """
        numbers = range(step * self._batch, (step + 1) * self._batch)
        return list(numbers) if self._repack else [self._again(number) for number in numbers]

    def of(self, numbers: Sequence[int]) -> Batch:
        """Return the batch of the rows of these numbers."""
        rows = [self._row(number) for number in numbers]
        tokens, documents, positions, learn = (np.stack(parts) for parts in zip(*rows, strict=True))
        inside = documents[:, 1:] == documents[:, :-1]
        wanted = np.zeros_like(learn)
        wanted[:, :-1] = learn[:, 1:] & inside
        chosen = np.flatnonzero(wanted)
        padded = max(1, -(-len(chosen) // self._chunk)) * self._chunk
        entries = np.zeros(padded, dtype=np.int64)
        weights = np.zeros(padded, dtype=np.float32)
        entries[: len(chosen)], weights[: len(chosen)] = chosen, 1
        return Batch(
            tokens=torch.from_numpy(tokens),
            documents=torch.from_numpy(documents),
            positions=torch.from_numpy(positions),
            entries=torch.from_numpy(entries),
            weights=torch.from_numpy(weights),
            count=len(chosen),
        )

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the conversations of an epoch in order, and where each ends in its stream."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._documents)
        return order, np.cumsum((self._corpus.ends - self._corpus.starts)[order])

    def _again(self, number: int) -> int:
        """Return the number in the first epoch of the row that stands at a place in another."""
        epoch, place = divmod(number, self.rows)
        return int(self._shuffled(epoch)[place]) if epoch else place

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of the first epoch in the order of a later one."""
        return np.random.default_rng((self._seed, epoch)).permutation(self.rows)

    def _row(self, number: int) -> tuple[NDArray[np.int64], ...]:
        """Return tokens, documents, positions and learnable tokens of one row."""
        epoch, place = divmod(number, self.rows)
        order, ends = self._order(epoch)
        begin, stop = place * self._length, (place + 1) * self._length
        tokens, documents, positions, learn = [], [], [], []
        first = int(np.searchsorted(ends, begin, side="right"))
        at = begin
        for index in range(first, len(order)):
            if at == stop:
                break
            taken = min(int(ends[index]), stop) - at
            source = int(self._corpus.ends[order[index]] - (ends[index] - at))
            part = slice(source, source + taken)
            tokens.append(self._corpus.tokens[part].astype(np.int64))
            learn.append(self._learn[part])
            documents.append(np.full(taken, index - first))
            positions.append(np.arange(taken))
            at += taken
        return tuple(map(np.concatenate, (tokens, documents, positions, learn)))


def visibility(documents: Tensor) -> Tensor:
    """Return who sees whom: the earlier tokens of the same conversation, and itself.

    Args:
        documents: int64 ``[B, L]``.

    Returns:
        bool ``[B, 1, L, L]``.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril()[:, None]
