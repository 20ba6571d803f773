"""Keys and values of committed text and of the tree being verified; knows rows, not tokens.

One preallocated tensor per layer: stacked into one tensor, the compiler copies the whole cache on
every write. Slot b's committed rows are 0 to ``lengths[b] - 1``; a pass writes its entries at the
rows that its `Step` names, and `compact` moves the accepted ones to the front.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.cache.compaction import Mover
from eagle.host import Whole

__all__ = ["Step", "TreeCache"]


@dataclass(frozen=True)
class Step:
    """One pass over N new entries per slot: where they are written and what each of them sees.

    Every entry sees the ``lengths[b]`` committed rows and those of the R rows behind them that
    `tail` allows. R is at least N: a draft head's later levels see earlier ones.

    Attributes:
        positions: int64 ``[B, N]``, rotary positions.
        rows: int64 ``[B, N]``, cache rows that the entries are written to.
        lengths: int64 ``[B]``, committed rows.
        tail: bool ``[B, N, R]``; entry (i, r) says that entry i sees row ``lengths[b] + r``.
        span: rows of the cache that are read, a bound known on the host: no slot's
            ``lengths[b] + R`` exceeds it.
        slot: int64 ``[1]``, the one slot that this pass is for (then B is 1), or None for all of
            them. On the device, so that one CUDA graph serves every slot.
    """

    positions: Tensor
    rows: Tensor
    lengths: Tensor
    tail: Tensor
    span: int
    slot: Tensor | None = None

    @classmethod
    def tree(cls, lengths: Tensor, depths: Tensor, ancestors: Tensor, span: int) -> Step:
        """Return the step that verifies a token tree right behind the committed rows."""
        offsets = torch.arange(depths.shape[1], device=depths.device)
        return cls(lengths[:, None] + depths, lengths[:, None] + offsets, lengths, ancestors, span)

    @classmethod
    def chain(cls, lengths: Tensor, count: int, span: int, slot: Tensor | None = None) -> Step:
        """Return the step that appends *count* entries, each seeing all before it."""
        offsets = torch.arange(count, device=lengths.device)
        rows = lengths[:, None] + offsets
        tail = (offsets[:, None] >= offsets).expand(lengths.shape[0], count, count)
        return cls(rows, rows, lengths, tail, span, slot)

    @property
    def slots(self) -> Tensor:
        """The slots that the pass is for, int64 ``[B, 1]``: beside `rows`, an index of entries."""
        if self.slot is not None:
            return self.slot[:, None]
        return torch.arange(self.lengths.shape[0], device=self.lengths.device)[:, None]

    def mask(self, window: int | None = None) -> Tensor:
        """Return the dense mask, bool ``[B, 1, N, span]``, True where an entry sees a row.

        Args:
            window: how many positions an entry sees back, its own included; None for all. Rows of
                the tail must be those of the entries then, in order, for their positions are known.
        """
        behind = torch.arange(self.span, device=self.lengths.device) - self.lengths[:, None]
        inside = (behind >= 0) & (behind < self.tail.shape[2])
        index = behind.clamp(0, self.tail.shape[2] - 1)[:, None].expand(-1, self.tail.shape[1], -1)
        seen = self.tail.gather(2, index) & inside[:, None]
        seen = seen | (behind < 0)[:, None]
        if window is not None:
            if self.tail.shape[1] != self.tail.shape[2]:
                raise ValueError("a window needs the positions of all rows of the tail")
            row = torch.arange(self.span, device=self.lengths.device)
            place = torch.where(behind < 0, row, self.positions.gather(1, index[:, 0]))
            seen = seen & (place[:, None] > self.positions[:, :, None] - window)
        return seen[:, None]


class TreeCache(Whole):
    """Keys and values of all layers, ``[slots, kv_heads, rows, head_dim]`` each.

    Rows start as zeros: a masked row still takes part in attention's weighted sum with weight
    zero, and zero times the NaN of uninitialised memory would be NaN.
    """

    copied = "a decoder's cache (what is moved and what is read would part in a copy)"

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        rows: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (slots, kv_heads, rows, head_dim)
        self.rows = rows
        # On a CPU in one piece, so that rows are moved in all layers at once; compilers for others
        # might take the parts of one tensor for the same.
        if device.type == "cpu":
            whole = torch.zeros((2 * layers, *shape), dtype=dtype, device=device)
            stores, self._pieces = [whole[part] for part in range(2 * layers)], [whole]
        else:
            stores = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * layers)]
            self._pieces = [store[None] for store in stores]
        self.keys, self.values = stores[:layers], stores[layers:]
        self._mover = Mover(stores) if Mover.serves(stores) else None

    @classmethod
    def over(cls, keys: list[Tensor], values: list[Tensor]) -> TreeCache:
        """Return a cache of tensors that there are, to write to and read from."""
        made = cls.__new__(cls)
        made.keys, made.values, made.rows = keys, values, keys[0].shape[2]
        made._pieces = [store[None] for store in (*keys, *values)]
        made._mover = None
        return made

    def write(self, layer: int, keys: Tensor, values: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Store the new entries of one layer and return what its queries may read.

        Args:
            layer: which layer.
            keys: ``[B, kv_heads, N, head_dim]``.
            values: the same shape.
            step: where to write.

        Returns:
            Keys and values ``[B, kv_heads, step.span, head_dim]``: views of the cache, or copies
            of one slot's rows where the pass is for one of several.
        """
        written = []
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            read = store[:, :, : step.span]
            if store.shape[0] == 1:
                store.index_copy_(2, step.rows[0], new)
            else:
                # Not a scatter, for which compiled code copies the whole cache.
                store.transpose(1, 2)[step.slots, step.rows] = new.transpose(1, 2)
                if step.slot is not None:
                    read = read.index_select(0, step.slot)
            written.append(read)
        return written[0], written[1]

    def compact(self, lengths: Tensor, path: Tensor) -> None:
        """Move the rows of the accepted path to the front of the tree's region, in every layer.

        Args:
            lengths: int64 ``[B]``, committed rows, where the tree's region starts.
            path: int64 ``[B, D + 1]``, accepted nodes in order. Entries behind the accepted ones
                may name any node; what they move is overwritten before it is ever seen.
        """
        if self._mover is not None:
            self._mover(lengths, path)
            return
        if path.shape[1] == 1:
            return  # the root alone, which is where it belongs
        slots = torch.arange(path.shape[0], device=path.device)[:, None]
        source = lengths[:, None] + path
        target = lengths[:, None] + torch.arange(path.shape[1], device=path.device)
        for piece in self._pieces:
            rows = piece.movedim((1, 3), (0, 1))
            rows[slots, target] = rows[slots, source]
