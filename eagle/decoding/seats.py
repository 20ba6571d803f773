"""Who has which slot and which blocks: allocates, seats, moves and unseats; runs no pass.

Slots are allocated for the most requests that are decoded at once, and a cycle runs over the first
of them only, up to the last that is taken. So the lowest free one is taken, and where rows lie in
blocks, a text in a high slot is moved to a low one when that lets cycles be narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eagle.cache import Blocks, Held
from eagle.cycle import Cycle, Slots
from eagle.decoding.batch import Batch
from eagle.decoding.reading import Reader
from eagle.decoding.requests import Request
from eagle.decoding.uniforms import Feed
from eagle.errors import RequestError
from eagle.runtime import MODERATE, Runtime

__all__ = ["Seats"]


class Seats:
    """The slots of a decoder and the blocks that their texts have.

    Args:
        cycle: what runs over slots.
        runtime: what allocates them.
        limit: slots at most.
        capacity: tokens of a text at most.
        sized: told how many requests are about to be decoded at once, when they are more than
            before and nothing is allocated.

    Attributes:
        slots: the tensors; None until something is decoded.
        blocks: where rows lie in blocks, whose is which.
        batch: the requests that are decoded, by slot.
        reader: those whose prompts are read, by slot.
        feed: the uniforms of the next cycle.
        steady: room is made for as many texts as there may be, not only for those that there are.
    """

    feed: Feed

    def __init__(
        self,
        cycle: Cycle,
        runtime: Runtime,
        limit: int,
        capacity: int,
        sized: Callable[[int], None] | None = None,
    ) -> None:
        self._cycle, self._runtime, self._sized, self._most = cycle, runtime, sized, 0
        self.limit, self.capacity, self.steady = limit, capacity, False
        self.let_go()

    def __bool__(self) -> bool:
        return bool(self.batch) or bool(self.reader)

    def let_go(self) -> None:
        """Forget all that was allocated, and who had it."""
        self.slots: Slots | None = None
        self.blocks = Blocks(0)
        self.batch = Batch(0, self._cycle.target.dtype)
        self.reader = Reader(self._runtime.budget)
        self._held: dict[int, Held] = {}
        self._rows = 0
        self._parts: dict[int, Slots] = {}

    @property
    def active(self) -> int:
        """How many slots are taken, by texts that are decoded or prompts that are read."""
        requests = self.batch.requests
        return len(requests) - requests.count(None) + len(list(self.reader.slots))

    def check(self, request: Request) -> None:
        """Refuse a text that there will never be memory for.

        Raises:
            RequestError: with what would fit.
        """
        if not self._cycle.paged or (need := self._need(request)) <= self.blocks.total:
            return
        most = self._runtime.room.most_blocks(self.blocks.total)
        if most is None or need <= most:
            return
        fits, told = self._cycle.tokens(most), request.index + 1
        if fits < 1:
            raise RequestError(
                f"prompt {told} does not fit: the device has no memory left for keys and values; "
                "whatever else holds its memory (another process, say) should be ended first, or "
                "the target needs a larger device, or runtime.quantize"
            )
        raise RequestError(
            f"prompt {told} and its answer may come to {_size(request)} tokens, and "
            f"this device has memory for {fits}; "
            + (
                f"with max_new_tokens={fits - len(request.prompt)} it would fit"
                if fits > len(request.prompt)
                else "shorten the prompt"
            )
        )

    def prepare(self, waiting: Sequence[Request]) -> None:
        """While nobody is seated, see to it that there is room for some who wait.

        Allocates anew only where they do not fit.
        """
        cycle, runtime = self._cycle, self._runtime
        longest = max(map(_size, waiting), default=0)
        needs = [self._need(one) for one in waiting] if cycle.paged else []
        wanted = len(waiting)
        if self.steady:
            moderate = min(MODERATE, self.capacity)
            wanted, longest = max(wanted, self.limit), max(longest, moderate)
            if cycle.paged:
                needs += [cycle.blocks(moderate)] * (self.limit - len(needs))
        if self._sized is not None and (most := min(wanted, self.limit)) > self._most:
            self.let_go()
            self._sized(most)
            self._most = most
        rows = runtime.rows(longest, self.capacity)
        count = runtime.slots(wanted, self.limit, rows)
        have = len(self.batch.requests)
        if (
            self.slots is not None
            and (have == count if runtime.lone else have >= count)
            and self._rows >= longest
            and runtime.room.holds(self.blocks.total, needs, count)
        ):
            return
        self.let_go()  # first, so that an interruption leaves nothing half done
        blocks = runtime.room.blocks(needs, count) if needs else None
        self.slots = runtime.allocate(count, rows, blocks)
        self.feed, self._rows = Feed(self.slots.uniforms), rows
        self.blocks = Blocks(blocks or 0, sharing=cycle.shares)
        self.batch = Batch(count, cycle.target.dtype)

    def take(self, request: Request) -> bool:
        """Give a request a slot and blocks, and have its prompt read; False if it has to wait."""
        if self._rows < _size(request):
            return False
        taken = set(self.reader.slots)
        slot = next((slot for slot in self.batch.free if slot not in taken), None)
        if slot is None:
            return False
        shared = 0
        if self._cycle.paged:
            held = self.blocks.take(request.prompt, self._need(request))
            if held is None:
                return False
            self._held[slot], shared = held, held.shared
            self._cycle.assign(slot, held.blocks)
            if shared and self.slots is not None:
                # Cycles write behind the rows of a slot that idles: not into what others read.
                self.slots.lengths[slot] = shared
        assert self.slots is not None
        self.slots.keys[slot] = request.key
        request.start()
        self.reader.add(slot, request, shared)
        return True

    def begin(self, slot: int, request: Request) -> None:
        """Let a request be decoded whose prompt is read; others may find what was read of it."""
        self.batch.requests[slot] = request
        if slot in self._held:
            self.blocks.share(self._held[slot], request.prompt)

    def still(self, slot: int) -> None:
        """Let cycles pass over a slot whose request has ended and is going to leave it."""
        assert self.slots is not None
        self._cycle.idle(self.slots, slot)
        if slot in self._held:
            self._cycle.assign(slot, ())

    def leave(
        self, slot: int, *, keep: bool = True, spoilt: bool = False, ahead: bool = False
    ) -> None:
        """Let a slot idle, and others have its blocks.

        Args:
            slot: which one.
            keep: what was read and decoded in it may be found by others.
            spoilt: what was computed there may be NaN, or anything.
            ahead: a cycle goes on from its text that nobody looks at: that may be NaN, too.
        """
        request = self.batch.requests[slot]
        self.batch.requests[slot] = None
        self.reader.remove(slot)
        self.still(slot)
        assert self.slots is not None
        held = self._held.pop(slot, None)
        if held is not None:
            if request is not None and keep:
                self.blocks.share(held, [*request.prompt, *request.tokens])
            self.blocks.give_back(held, spoilt=spoilt)
        if spoilt:
            self._cycle.clear(self.slots, slot)
        elif ahead and request is not None and not self._cycle.shares:
            # It began where this text ends, or behind what was cut off there.
            first = len(request.prompt) + len(request.tokens) - 1
            self._cycle.clear(self.slots, slot, first, first + self._cycle.headroom)

    def first(self) -> Slots:
        """Return the slots that the next cycle runs over."""
        assert self.slots is not None
        width = self._runtime.width(self.batch.width, len(self.batch.requests))
        if width not in self._parts:
            self._parts[width] = self.slots.first(width)
        return self._parts[width]

    def close_up(self) -> bool:
        """Move texts from high slots to low free ones, where cycles are narrower then.

        Returns:
            Whether any was moved.
        """
        if not self._cycle.shares or self.slots is None:
            return False
        requests, reading = self.batch.requests, set(self.reader.slots)
        live = [slot for slot, request in enumerate(requests) if request is not None]
        if not live:
            return False
        goal = self._runtime.bucket(len(live))
        free = (slot for slot in self.batch.free if slot not in reading)
        for source in reversed(live):
            target = next(free, source)
            if source < goal or target >= source:
                break
            self._cycle.move(self.slots, source, target)
            self.feed.move(source, target)
            self.batch.move(source, target)
            self._held[target] = self._held.pop(source)
        return requests[live[-1]] is None

    def _need(self, request: Request) -> int:
        return self._cycle.blocks(_size(request))


def _size(request: Request) -> int:
    """Return the tokens of a text, prompt and answer, at most."""
    return len(request.prompt) + request.limit
