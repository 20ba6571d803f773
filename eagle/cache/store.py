"""Keys and values of committed text and of the tree being verified; knows rows, not tokens.

One preallocated tensor per layer, written in place along its rows: compiled code copies the whole
of what is written through a view or through several indices. A slot's rows are numbered from 0; the
committed ones are 0 to ``lengths[b] - 1``. Where they lie is settled here: one slot's behind the
other's, or in blocks that a table names. A pass writes its entries at the rows that its `Step`
names, and `compact` moves the accepted ones to the front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eagle.cache.compaction import Mover
from eagle.host import Whole

__all__ = ["BLOCK", "Pages", "Segments", "Step", "TreeCache", "gathered"]

BLOCK = 64
"""Rows of a block: no less than what an attention kernel reads in one step."""


@dataclass(frozen=True)
class Pages:
    """Where slots' rows lie in stores that are cut into blocks; caches may share it.

    Attributes:
        table: int32 ``[slots, M]``: rows ``m * BLOCK`` and on of a slot are in the block
            ``table[slot, m]``. Block 0 belongs to nobody: it takes what no one will read.
        blocks: how many there are, block 0 included.
    """

    table: Tensor
    blocks: int

    @classmethod
    def whole(cls, slots: int, rows: int, device: torch.device) -> Pages:
        """Return the table by which every slot has blocks of its own for *rows* rows."""
        count = -(-rows // BLOCK)
        table = 1 + torch.arange(slots * count, dtype=torch.int32, device=device)
        return cls(table.view(slots, count), 1 + slots * count)


@dataclass(frozen=True)
class Segments:
    """Whose texts the entries of a packed pass continue, one segment after the other.

    Attributes:
        slots: int64 ``[S]``, the slot of each segment; no two that are not empty have the same.
        offsets: int32 ``[S + 1]``; segment s is entries ``offsets[s]`` to ``offsets[s + 1] - 1``.
        owners: int64 ``[T]``, the segment of every entry.
        pieces: slot, committed rows and entries of each segment, as the host knows them; None in a
            pass that is captured, which serves any.
    """

    slots: Tensor
    offsets: Tensor
    owners: Tensor
    pieces: tuple[tuple[int, int, int], ...] | None


@dataclass(frozen=True)
class Step:
    """One pass over N new entries per slot: where they are written and what each of them sees.

    Every entry sees the ``lengths[b]`` committed rows and those of the R rows behind them that
    `tail` allows. R is at least N: a draft head's later levels see earlier ones.

    A packed pass (`packed`) has entries of several slots in one row instead, so that B is 1 and N
    their total; every entry sees all rows of its text up to its own.

    Attributes:
        positions: int64 ``[B, N]``, rotary positions.
        rows: int64 ``[B, N]``, rows of its slot that each entry is written to.
        lengths: int64 ``[B]``, committed rows; of a packed pass ``[S]``, of each segment.
        tail: bool ``[B, N, R]``; entry (i, r) says that entry i sees row ``lengths[b] + r``.
            A packed pass has none: ``[S, 0, 0]``.
        span: rows of a slot that are read, a bound known on the host: no slot's
            ``lengths[b] + R`` exceeds it. A packed pass has none: 0.
        slot: int64 ``[1]``, the one slot that this pass is for (then B is 1), or None for all of
            them. On the device, so that one CUDA graph serves every slot.
        segments: of a packed pass.
        place: int64 ``[B * N]``, rows of the stores that entries are written to; of a step that a
            cache has located.
        table: int32 ``[B, M]`` (``[S, M]``), the blocks of the step's slots; of a step that a cache
            of blocks has located, or before, for all caches that share them.
    """

    positions: Tensor
    rows: Tensor
    lengths: Tensor
    tail: Tensor
    span: int
    slot: Tensor | None = None
    segments: Segments | None = None
    place: Tensor | None = None
    table: Tensor | None = None

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

    @classmethod
    def packed(cls, pieces: tuple[tuple[int, int, int], ...], device: torch.device) -> Step:
        """Return the step that appends pieces of several texts in one row.

        Args:
            pieces: slot, committed rows and number of entries of each; no two of one slot.
            device: where the caches are.
        """
        numbers, counts = torch.tensor(pieces), [count for _, _, count in pieces]
        ends = numbers[:, 2].cumsum(0)
        owners = torch.arange(len(pieces)).repeat_interleave(numbers[:, 2])
        rows = torch.arange(sum(counts)) - (ends - numbers[:, 2] - numbers[:, 1])[owners]
        sent = torch.cat((numbers[:, 0], numbers[:, 1], ends, owners, rows))
        sent = sent.to(device, non_blocking=True)
        few = [len(pieces)] * 3
        parts = torch.split(sent, [*few, sum(counts), sum(counts)])
        slots, lengths, ends, owners, rows = parts
        return cls.of_segments(slots, lengths, ends, owners, rows, pieces)

    @classmethod
    def of_segments(
        cls,
        slots: Tensor,
        lengths: Tensor,
        ends: Tensor,
        owners: Tensor,
        rows: Tensor,
        pieces: tuple[tuple[int, int, int], ...] | None = None,
    ) -> Step:
        """Return a packed step by what is on the device.

        Args:
            slots: int64 ``[S]``, the slot of each segment.
            lengths: int64 ``[S]``, its committed rows.
            ends: int64 ``[S]``, behind its last entry.
            owners: int64 ``[T]``, the segment of every entry.
            rows: int64 ``[T]``, the row of every entry.
            pieces: what the host knows of them.
        """
        offsets = torch.cat((ends.new_zeros(1), ends)).to(torch.int32)
        tail = torch.zeros(slots.shape[0], 0, 0, dtype=torch.bool, device=slots.device)
        segments = Segments(slots, offsets, owners, pieces)
        return cls(rows[None], rows[None], lengths, tail, 0, segments=segments)

    @property
    def slots(self) -> Tensor:
        """The slots of the entries, int64 ``[B, 1]`` or ``[1, T]``: beside `rows`, an index."""
        if self.segments is not None:
            return self.segments.slots[self.segments.owners][None]
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
    """Keys and values of all layers, one store ``[kv_heads, rows of all slots, head_dim]`` each.

    Without *pages*, rows start as zeros: a masked row still takes part in a dense attention's
    weighted sum with weight zero, and zero times the NaN of uninitialised memory would be NaN.

    Args:
        layers: how many.
        slots: how many texts.
        kv_heads: key and value heads.
        rows: of each slot, at most.
        head_dim: size of a head.
        dtype: of keys and values.
        device: where.
        pages: where slots' rows lie; None for one slot's behind the other's.
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
        pages: Pages | None = None,
    ) -> None:
        shape = (kv_heads, slots * rows if pages is None else pages.blocks * BLOCK, head_dim)
        # On a CPU in one piece, so that rows are moved in all layers at once; compilers for others
        # might take the parts of one tensor for the same.
        if device.type == "cpu":
            whole = torch.zeros((2 * layers, *shape), dtype=dtype, device=device)
            stores, pieces = [whole[part] for part in range(2 * layers)], [whole]
        else:
            stores = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * layers)]
            pieces = [store[None] for store in stores]
        if pages is not None:
            for store in stores:  # so that phases are not compiled anew where there are more blocks
                torch._dynamo.mark_dynamic(store, 1)
        self._set(stores, pieces, slots, pages)
        self._mover = Mover(stores) if Mover.serves(stores) else None

    @classmethod
    def over(cls, stores: list[Tensor]) -> TreeCache:
        """Return a cache of one slot over stores that there are, to write to and read from."""
        return cls._of(stores, 1, None)

    @classmethod
    def _of(cls, stores: list[Tensor], slots: int, pages: Pages | None) -> TreeCache:
        made = cls.__new__(cls)
        made._set(stores, [store[None] for store in stores], slots, pages)
        made._mover = None
        return made

    def of_layer(self, layer: int) -> TreeCache:
        """Return the cache of one layer, number 0 in it, over the same memory."""
        if not self._layers:
            half = len(self.stores) // 2
            for keys, values in zip(self.stores[:half], self.stores[half:], strict=True):
                self._layers.append(TreeCache._of([keys, values], self.slots, self.pages))
        return self._layers[layer]

    def _set(
        self, stores: list[Tensor], pieces: list[Tensor], slots: int, pages: Pages | None
    ) -> None:
        self.stores, self._pieces, self.slots, self.pages = stores, pieces, slots, pages
        self.rows = stores[0].shape[1] // slots if pages is None else pages.table.shape[1] * BLOCK
        self._layers: list[TreeCache] = []

    @property
    def keys(self) -> list[Tensor]:
        """Keys of every layer as `write` lets them be read: views of the stores."""
        return [self._shown(store) for store in self.stores[: len(self.stores) // 2]]

    @property
    def values(self) -> list[Tensor]:
        """Values, likewise."""
        return [self._shown(store) for store in self.stores[len(self.stores) // 2 :]]

    def _shown(self, store: Tensor) -> Tensor:
        """Return ``[slots, kv_heads, rows, head_dim]``; of blocks ``[1, kv_heads, all, size]``."""
        if self.pages is not None or self.slots == 1:
            return store[None]
        return store.view(store.shape[0], self.slots, -1, store.shape[2]).transpose(0, 1)

    def locate(self, step: Step) -> Step:
        """Return a step that says where in the stores its entries go, once for all layers.

        What `write` returns for it is meant for a backend whose plan was made of it.
        """
        segments = step.segments
        if self.pages is None:
            place = step.rows if self.slots == 1 else step.slots * self.rows + step.rows
            return replace(step, place=place.flatten(), table=None)
        table = self.pages.table
        if segments is not None:
            table = table.index_select(0, segments.slots) if step.table is None else step.table
            block = table[segments.owners[None], step.rows // BLOCK]
        else:
            few = table[: step.rows.shape[0]]  # a pass may be over the first slots only
            table = few if step.slot is None else table.index_select(0, step.slot)
            block = table.gather(1, step.rows // BLOCK)
        place = block.long() * BLOCK + step.rows % BLOCK
        return replace(step, place=place.flatten(), table=table)

    def write(self, layer: int, keys: Tensor, values: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Store the new entries of one layer and return what its queries may read.

        Args:
            layer: which layer.
            keys: ``[B, kv_heads, N, head_dim]``.
            values: the same shape.
            step: where to write.

        Returns:
            Keys and values ``[B, kv_heads, step.span, head_dim]``: views of the cache, or copies
            of one slot's rows where the pass is for one of several. For a packed pass, those of
            all slots. For a step that a cache of blocks has located, the whole stores
            ``[1, kv_heads, all rows, head_dim]``, in which `Step.table` says what is whose.
        """
        known = step.place is not None
        step = step if known else self.locate(step)
        written = []
        for number, new in ((layer, keys), (layer + len(self.stores) // 2, values)):
            store = self.stores[number]
            # Heads in front, and the entries of all slots behind each other, as in the stores.
            new = new[0] if new.shape[0] == 1 else new.transpose(0, 1).flatten(1, 2)
            new = new.detach()  # what is written is never trained through
            store.index_copy_(1, step.place, new)  # type: ignore[arg-type]
            read = self._shown(store)
            if step.table is not None:
                read = read if known else gathered(read, step)
            elif step.segments is None:
                read = read[:, :, : step.span]
                if step.slot is None:
                    read = read[: step.rows.shape[0]]
                elif self.slots > 1:
                    read = read.index_select(0, step.slot)
            written.append(read)
        return written[0], written[1]

    def clear(self, slot: int, start: int, end: int) -> None:
        """Let some rows of a slot be zero, where slots' rows lie one behind the other."""
        for store in self.stores:
            store[:, slot * self.rows + start : slot * self.rows + end].zero_()

    def compact(self, lengths: Tensor, path: Tensor) -> None:
        """Move the rows of the accepted path to the front of the tree's region, in every layer.

        Args:
            lengths: int64 ``[B]``, committed rows, where the tree's region starts.
            path: int64 ``[B, D + 1]``, accepted nodes in order. Entries behind the accepted ones
                may name any node; what they move is overwritten before it is ever seen.
        """
        if path.shape[1] == 1:
            return  # the root alone, which is where it belongs
        if self._mover is not None:
            self._mover(lengths, path, self.rows, None if self.pages is None else self.pages.table)
            return
        order = torch.arange(1, path.shape[1], device=path.device).expand_as(path[:, 1:])
        source, target = (self._place(lengths[:, None] + rows) for rows in (path[:, 1:], order))
        for piece in self._pieces:
            piece.index_copy_(2, target, piece.index_select(2, source))

    def _place(self, rows: Tensor) -> Tensor:
        """Return where in the stores rows ``[slots, n]`` of all slots are, ``[slots * n]``."""
        step = Step(rows, rows, rows[:, 0], rows.new_zeros(0), 0)
        place = self.locate(step).place
        assert place is not None
        return place


def gathered(store: Tensor, step: Step) -> Tensor:
    """Copy out of blocks what a dense attention reads.

    Args:
        store: ``[1, kv_heads, all rows, head_dim]``, of `TreeCache.write`.
        step: located, and not packed.

    Returns:
        ``[B, kv_heads, step.span, head_dim]``. Rows behind those that an entry may see are zero,
        since others' may be NaN, which no mask keeps out of a weighted sum.
    """
    assert step.table is not None
    row = torch.arange(step.span, device=store.device)
    place = step.table[:, row // BLOCK].long() * BLOCK + row % BLOCK
    found = store[0].index_select(1, place.flatten())
    found = found.view(found.shape[0], -1, step.span, found.shape[2]).transpose(0, 1)
    live = row < (step.lengths + step.tail.shape[2])[:, None]
    return found.masked_fill(~live[:, None, :, None], 0)
