"""Process 0 takes requests, and the others that hold its target do every pass that it does.

Before a pass it tells who came and who was given up; all else follows from that. Decoders that
share the engine's target are led beside the engine's own: the others make them when they are told
to. It knows requests and what tells them apart; how orders travel is `eagle.target`'s, and what a
pass does the loop's.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary

from eagle.decoding.decoder import Decoder
from eagle.decoding.pickled import unpacked
from eagle.decoding.requests import Event
from eagle.decoding.telling import telling
from eagle.decoding.tickets import Ticket
from eagle.decoding.trace import Trace
from eagle.errors import PartedError, RequestError, reason
from eagle.plugin import SamplingParams
from eagle.spec import DecoderSpec
from eagle.target import News, Target, Together

__all__ = ["Follower", "Lead", "Look", "beside"]

log = logging.getLogger("eagle.decoder")

_END = b"end"
_OWN = 0  # the number of the engine's decoder; those beside it are numbered from 1


@dataclass(frozen=True)
class Look:
    """A decoder beside another one, as every process makes it.

    Attributes:
        spec: its spec; the target is the other one's, whatever it says.
        plain: decode without a trace; otherwise each cycle can be looked at.
        nodes: refuse trees that have more.
    """

    spec: DecoderSpec
    plain: bool
    nodes: int | None

    def made(self, target: Target) -> tuple[Decoder, Trace | None]:
        """Make it here; see `Decoder.from_spec` for errors."""
        if self.plain:
            return Decoder.from_spec(self.spec, target=target), None
        trace = Trace()
        return trace.decoder(self.spec, target=target, nodes=self.nodes), trace


def beside(base: Decoder, look: Look) -> tuple[Decoder, Trace | None]:
    """Make a decoder that shares another one's target, in all processes that hold it.

    Args:
        base: the other one; where several processes hold its target, an open engine's, in the
            process that leads.
        look: what is made.

    Raises:
        RequestError: no engine leads the processes that hold the target.
        EagleError: see `Decoder.from_spec`.
    """
    lead = base.loop.lead
    if isinstance(lead, Lead):
        return lead.beside(look, base.target)
    if base.target.together is not None:
        raise RequestError("several processes hold this target, and no engine leads them any more")
    return look.made(base.target)


@dataclass(frozen=True)
class _Order:
    """What one pass goes by, of one of the decoders.

    Attributes:
        number: of the decoder.
        arrived: who came.
        cancelled: who was given up.
    """

    number: int
    arrived: list[_Asked]
    cancelled: list[int]


@dataclass(frozen=True)
class _Beside:
    """To make a decoder.

    Attributes:
        number: of the decoder.
        look: what it is.
        kept: numbers of those that are still in use; the others can go.
    """

    number: int
    look: Look
    kept: frozenset[int]


@dataclass(frozen=True)
class _WarmUp:
    """To compile and capture what requests to a decoder are going to need."""

    number: int


@dataclass(frozen=True)
class _Asked:
    """A request as others make it anew: what its tokens depend on, and nothing else."""

    number: int
    index: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    priority: int
    processors: bytes


class Lead:
    """What the first process tells the others; see `eagle.decoding.loop.Leader`.

    Args:
        together: the processes.
    """

    def __init__(self, together: Together) -> None:
        self._together, self._requests = together, count(1)
        self._decoders, self._beside = count(_OWN + 1), WeakValueDictionary[int, _LeadBeside]()
        self._over = False

    def tell(self, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]) -> None:
        """Say who came and who was given up before the pass that comes now."""
        # Nothing, which is what there is to tell of most passes, travels fastest.
        told = self._order(_OWN, arrived, cancelled) if arrived or cancelled else b""
        self._together.relay(told)

    def warm_up(self) -> None:
        """Say that the engine's decoder is warmed up now."""
        self.warm_up_one(_OWN)

    def warm_up_one(self, number: int) -> None:
        """Say that one of the decoders is warmed up now.

        Raises:
            PartedError: the engine is closed; nobody follows any more.
        """
        self._still()
        self._together.relay(pickle.dumps(_WarmUp(number)))

    def end(self) -> None:
        """Say that no pass comes any more, of any decoder."""
        self._over, self._together.led = True, False
        self._together.relay(_END)

    def abandon(self, why: str) -> None:
        """Do nothing more with the others, who end where they wait for this process."""
        self._together.abandon(why)

    def beside(self, look: Look, target: Target) -> tuple[Decoder, Trace | None]:
        """Make a decoder that shares the target, here and in the others, and lead it.

        Raises:
            RequestError: the engine is closed.
            PartedError: another process could not make it.
            TargetError: another process is lost.
            EagleError: see `Decoder.from_spec`; in all processes alike.
        """
        number, told = next(self._decoders), False

        def begin() -> None:
            nonlocal told
            if self._over:
                raise RequestError("the engine that led the processes of this target is closed")
            if not told:
                told = True
                kept = frozenset(self._beside)
                self._together.relay(pickle.dumps(_Beside(number, look, kept)))

        # Nobody's pass comes between: the others make it from its beginning to its end.
        with target.turn.kept("making a decoder"), self._together.ordered(begin):
            with telling(self._together, joined=lambda: told):
                made = look.made(target)
            self._together.same(number, News())
        lead = _LeadBeside(self, number)
        self._beside[number] = made[0].loop.lead = lead
        return made

    def tell_beside(
        self, number: int, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]
    ) -> None:
        """Say what a pass of another decoder goes by.

        Raises:
            PartedError: the engine is closed; nobody follows any more.
        """
        self._still()
        self._together.relay(self._order(number, arrived, cancelled))

    def _still(self) -> None:
        if self._over:
            raise PartedError("the engine that led the processes of this target was closed")

    def _order(self, number: int, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]) -> bytes:
        asked = [self._asked(ticket) for ticket in arrived]
        given_up = [ticket.number for ticket in cancelled if ticket.number]
        return pickle.dumps(_Order(number, asked, given_up))

    def _asked(self, ticket: Ticket) -> _Asked:
        ticket.number = next(self._requests)
        one = ticket.request
        return _Asked(
            ticket.number, one.index, one.prompt, one.params, one.seed, ticket.priority, one.packed
        )


class _LeadBeside:
    """What is told of the passes of a decoder beside the engine's."""

    def __init__(self, lead: Lead, number: int) -> None:
        self._lead, self._number = lead, number

    def tell(self, arrived: Sequence[Ticket], cancelled: Sequence[Ticket]) -> None:
        self._lead.tell_beside(self._number, arrived, cancelled)

    def warm_up(self) -> None:
        self._lead.warm_up_one(self._number)

    def end(self) -> None:
        """Nothing: that no pass comes any more is the engine's to say."""

    def abandon(self, why: str) -> None:
        self._lead.abandon(why)


class Follower:
    """Does the passes that the first process does, until that says that there are no more.

    Args:
        decoder: what decodes.
        together: the processes.
    """

    def __init__(self, decoder: Decoder, together: Together) -> None:
        self._target, self._together = decoder.target, together
        self._decoders = {_OWN: decoder}
        self._tickets: dict[int, dict[int, Ticket]] = {_OWN: {}}  # by decoder and number

    def run(self) -> None:
        """Follow to the end.

        Raises:
            TargetError: a process is lost.
        """
        while (order := self._together.relay()) != _END:
            told = pickle.loads(order) if order else _Order(_OWN, [], [])
            if isinstance(told, _Beside):
                self._make(told)
            elif isinstance(told, _WarmUp):
                self._warm_up(told)
            else:
                self._pass(told)

    def _pass(self, told: _Order) -> None:
        decoder, tickets = self._decoders[told.number], self._tickets[told.number]
        arrived = [_ticket(decoder, one) for one in told.arrived]
        tickets |= {asked.number: one for asked, one in zip(told.arrived, arrived, strict=True)}
        decoder.loop.follow(arrived, [tickets[n] for n in told.cancelled if n in tickets])
        for number in [n for n, one in tickets.items() if one.over]:
            del tickets[number]

    def _warm_up(self, told: _WarmUp) -> None:
        """Warm a decoder up; where that fails, requests wait for what was not done."""
        try:
            self._decoders[told.number].loop.follow_warm_up()
        except Exception as error:
            log.warning("what requests need could not all be captured here: %s", reason(error))
        self._together.still()

    def _make(self, told: _Beside) -> None:
        """Make a decoder; what is wrong with it is told in the process that was asked for it."""
        for number in self._decoders.keys() - told.kept - {_OWN}:
            del self._decoders[number], self._tickets[number]
        try:
            with self._together.ordered(lambda: None):
                made, _ = told.look.made(self._target)
        except Exception as error:
            self._together.failed(error)
        else:
            with suppress(PartedError):  # others could not make it
                self._together.same(told.number, News())
                self._decoders[told.number], self._tickets[told.number] = made, {}
        self._together.still()


def _ticket(decoder: Decoder, asked: _Asked) -> Ticket:
    given = unpacked(asked.processors, decoder.target.tokenizer)
    request = decoder.again(asked.prompt, asked.params, given, asked.index, asked.seed)
    return Ticket(request, _Nobody(), asked.priority)


class _Nobody:
    """Where nobody waits: whoever asked is in another process."""

    def put(self, ticket: Ticket, event: Event) -> None:
        pass

    def fail(self, ticket: Ticket, error: Exception) -> None:
        pass
