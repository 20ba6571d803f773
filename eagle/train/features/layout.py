"""What files of cached features hold, and how much of it; knows no file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eagle.plugin import FeatureExtractor, TargetInfo

__all__ = ["SHARD", "Layout"]

SHARD = 2**29
"""Bytes of a file, about."""


@dataclass(frozen=True)
class Layout:
    """What the files hold, and how much of it.

    Attributes:
        rows: of the text.
        length: L, tokens of a row.
        features: F.
        last: H, or 0 where the features are the LM head's input.
        dtype: of both: the target's own, so that nothing is rounded.
        shard: rows of a file; the last one may have fewer.
        identity: what the features follow from, by name: digests of the target and the text,
            the extractor, and what decides how rows are cut.
    """

    rows: int
    length: int
    features: int
    last: int
    dtype: str
    shard: int
    identity: dict[str, str]

    @classmethod
    def of(
        cls,
        rows: int,
        length: int,
        extractor: FeatureExtractor,
        info: TargetInfo,
        dtype: torch.dtype,
        identity: dict[str, str],
    ) -> Layout:
        """Return the layout of so many rows; see the attributes."""
        size, probe = extractor.feature_size(info), torch.zeros(1, 1, info.hidden_size)
        plain = not extractor.layers and extractor.extract(probe, []) is probe
        last = 0 if plain else info.hidden_size
        row = length * (size + last) * dtype.itemsize
        shard = max(1, min(rows, SHARD // row))
        name = str(dtype).removeprefix("torch.")
        return cls(rows, length, size, last, name, shard, identity)

    @property
    def bytes(self) -> int:
        """How much all files take, but for their headers."""
        width = (self.features + self.last) * getattr(torch, self.dtype).itemsize
        return int(self.rows * self.length * width)

    @property
    def shards(self) -> int:
        """How many files there are."""
        return -(-self.rows // self.shard)

    def part(self, number: int) -> range:
        """Return the rows of a file."""
        return range(number * self.shard, min((number + 1) * self.shard, self.rows))
