"""The requests that are being answered, each in a slot: what they need next, what an outcome means.

It knows requests and outcomes that were read back; it does not know the device or how cycles run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from eagle.cycle import Processing
from eagle.decoding.logprobs import Logprobs
from eagle.decoding.requests import Event, Request
from eagle.errors import NumericalError
from eagle.plugin import SamplingParams, Seen

__all__ = ["Batch", "Outcome", "failed_last"]

Outcome = Sequence[int]
"""What a cycle did in one slot: a row of `eagle.cycle.Slots.outcome`."""

_NAN = {1: "the target", 2: "the draft head", 3: "the target and the draft head"}
_STUCK = 4
_IDLE = SamplingParams(max_new_tokens=1)


class Batch:
    """Requests by slot.

    Args:
        slots: how many slots there are.
        dtype: of the target, for what is said where numbers were too large for it.

    Attributes:
        requests: the request of every slot, None where it is free or its prompt is being read.
    """

    def __init__(self, slots: int, dtype: torch.dtype) -> None:
        self.requests: list[Request | None] = [None] * slots
        self._committed: list[int | None] = [None] * slots
        self._dtype = dtype

    def __bool__(self) -> bool:
        return any(self.requests)

    @property
    def free(self) -> list[int]:
        """Slots without a request."""
        return [slot for slot, request in enumerate(self.requests) if request is None]

    @property
    def width(self) -> int:
        """How many slots there are up to the last that has a request."""
        count = len(self.requests)
        while count and self.requests[count - 1] is None:
            count -= 1
        return count

    @property
    def longest(self) -> int:
        """Tokens of the longest text so far."""
        return max([len(r.prompt) + len(r.tokens) for r in self.requests if r is not None])

    def params(self, count: int) -> list[SamplingParams]:
        """Return the first slots' parameters; a free one is greedy: it keeps no one from that."""
        return [r.params if r else _IDLE for r in self.requests[:count]]

    def processing(self) -> Processing | None:
        """Return what the logits processors of the requests need, if any has some."""
        slots = {
            slot: ([*request.prompt, *request.tokens], request.processors)
            for slot, request in enumerate(self.requests)
            if request is not None and request.processors
        }
        return Processing(slots) if slots else None

    def put(self, slot: int, request: Request) -> None:
        """Give a slot to a request."""
        self.requests[slot], self._committed[slot] = request, None

    def note(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Take note of what a cycle did in slots, before it is delivered."""
        self._committed = [None] * len(self.requests)
        for slot, outcome in outcomes:
            self._committed[slot] = outcome[0]

    def move(self, source: int, target: int) -> None:
        """Let a request go on in another slot, which is free."""
        self.requests[target], self.requests[source] = self.requests[source], None
        self._committed[target], self._committed[source] = self._committed[source], None

    @property
    def committed(self) -> tuple[int | None, ...]:
        """For every slot, how many tokens the last cycle committed; None where nobody had one."""
        known = zip(self.requests, self._committed, strict=True)
        return tuple(count if request else None for request, count in known)

    def seen(self, width: int, offered: Sequence[int] = (), *, slots: int = 0) -> Seen:
        """Return what the next cycle's tree may be chosen by.

        Args:
            width: over how many slots the cycle runs.
            offered: what the head offers in the first slots, if it says so.
            slots: how many requests are decoded at once, at most.
        """
        own = [*offered, *[0] * (len(self.requests) - len(offered))] if offered else []
        drawn = [one.params for one in self.requests if one and one.params.temperature > 0]
        return Seen(
            active=sum(request is not None for request in self.requests),
            committed=self.committed,
            offered=tuple(
                levels if request else None
                for request, levels in zip(self.requests, own, strict=False)
            ),
            width=width,
            sampled=bool(drawn),
            slots=slots,
            # By the parameters, which all processes have alike; each request has some seed.
            seeded=any(params.seed is not None for params in drawn),
        )

    def ending(
        self, outcomes: Iterable[tuple[int, Outcome]], *, stops: bool = False
    ) -> list[int] | None:
        """Return the slots whose requests end by what a cycle gave, as far as token ids tell.

        Another cycle may start then before anything is delivered. Only a stop string can show
        afterwards that a slot's cycle was for nothing; its outcome is not looked at.

        Args:
            outcomes: slots, and what the cycle did in them.
            stops: whether it has to be known what stop strings say.

        Returns:
            None where what came has to be delivered before another cycle starts: one has failed,
            or is asked for on the host.
        """
        found = []
        # One plain loop: the device waits for this.
        for slot, outcome in outcomes:
            request = self.requests[slot]
            if request is None:
                continue
            if outcome[1] or request.processors or (stops and request.params.stop):
                return None
            if request.ends_with(outcome[2 : 2 + outcome[0]]):
                found.append(slot)
        return found

    @property
    def over(self) -> list[int]:
        """The slots whose requests the cycle that is under way ends, whatever it gives them."""
        return [
            slot
            for slot, request in enumerate(self.requests)
            if request is not None and len(request.tokens) + 1 >= request.limit
        ]

    @property
    def asks(self) -> bool:
        """Whether something on the host is asked in every cycle: somebody's logits processors."""
        return any(r is not None and r.processors for r in self.requests)

    @property
    def reports(self) -> bool:
        """Whether some request wants to know what the target gives its tokens."""
        return any(r is not None and r.params.logprobs is not None for r in self.requests)

    def deliver(
        self,
        slot: int,
        outcome: Outcome,
        *,
        verified: bool = True,
        logprobs: Logprobs | None = None,
    ) -> Event:
        """Give a slot's new tokens to its request; who is finished keeps the slot till it leaves.

        Args:
            slot: which one; it has a request.
            outcome: its outcome.
            verified: False for the first token, which the prompt's own pass gives.
            logprobs: of the pass, where some request asked for them.

        Raises:
            NumericalError: NaN or infinity decided, or logits processors left no token.
        """
        request = self.requests[slot]
        assert request is not None
        if outcome[1]:
            raise self._failure(request, outcome[1])
        given, asked = outcome[2 : 2 + outcome[0]], request.params.logprobs
        found = logprobs.of(slot, given, asked) if logprobs and asked is not None else ()
        return request.deliver(given, verified=verified, logprobs=found)

    def _failure(self, request: Request, bad: int) -> NumericalError:
        place = f"after {len(request.tokens)} tokens of prompt {request.index + 1}"
        if bad == _STUCK:
            return NumericalError(
                f"{place} its logits processors give no token a finite best score, so none can "
                "be chosen"
            )
        return NumericalError(
            f"{_NAN[bad % _STUCK]} produced NaN or infinity {place}; no token can be chosen "
            f"from that (its weights may be damaged, or {self._dtype} too narrow for it: try "
            "target.dtype=float32)"
        )


def failed_last(outcomes: Iterable[tuple[int, Outcome]]) -> list[tuple[int, Outcome]]:
    """Return slots and outcomes, failures last, so that they cost no answer that ends here too."""
    found = list(outcomes)
    failed = [one for one in found if one[1][1]]
    return [one for one in found if not one[1][1]] + failed if failed else found
