"""The processes that hold one target together, each a part of every layer.

All run the same command and decide alike, from the same logits and uniforms. Here they meet, hold
what they decided against each other, hear what the first one orders, and notice at once when one is
lost. Knows torch.distributed; knows no model, no cycle and no request.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from eagle.errors import PartedError, RequestError, TargetError, clipped, reason
from eagle.host import Turn
from eagle.target.direct import Direct

__all__ = ["Captured", "News", "Together"]

_MEETING = timedelta(minutes=2)  # that the first waits for the last at the start
_COLLECTIVE = timedelta(minutes=30)  # compiling may take one longer than another
_BEAT = 1.0  # seconds
_ORDERS = timedelta(days=365)  # nobody may ask for anything for as long as that
_LOST = 20.0  # seconds without a beat: whoever is killed is noticed by the others within 30
_PARTING = 5.0  # that the first waits for the others at the end
_EXIT = 2
_OVER = b"over"
_OTHER_TOKENS = "they accepted or chose different tokens"


@dataclass(frozen=True)
class News:
    """Whether requests came, and whether some were given up, since a pass began.

    When that is seen differs from process to process, so what follows of it is agreed on.
    """

    came: bool = False
    left: bool = False


class Captured(Protocol):
    """What may hold collectives that were captured in CUDA graphs."""

    def release(self) -> None:
        """Take the graphs apart; nothing replays them any more."""


class Together:
    """One process among those that hold a target; `join` gives it.

    Attributes:
        rank: which one this is, from 0; the first one takes requests and prints.
        count: how many there are.
        turn: of all targets that they hold: what one does with another is done in one order.
        led: an engine is open: the others do what the first one orders, and nothing by themselves.
        passes: that all came to the end of, or failed in; and sizes that they agreed on within.
        direct: adds up what they have, where their devices reach each other's memory.
        gone: why nothing can be done together any more; None as long as it can.
    """

    _joined: Together | None = None

    def __init__(self, rank: int, count: int, beats: Any) -> None:
        self.rank, self.count = rank, count
        self.turn, self.led, self.passes = Turn(), False, 0
        self.gone: TargetError | None = None
        self.direct: Direct | None = None
        self._beats, self._failure = beats, ""
        self._captured: weakref.WeakSet[Captured] = weakref.WeakSet()
        self._ordered = threading.local()
        # Of their own on the host: what is decided is known there, and NCCL has no numbers of it.
        self._group = dist.new_group(backend="gloo", timeout=_COLLECTIVE)
        self._orders = dist.new_group(backend="gloo", timeout=_ORDERS)
        self._over, self._quiet, self._leaving = (threading.Event() for _ in range(3))
        self._watch = threading.Thread(target=self._look, name="eagle-watch", daemon=True)
        self._watch.start()
        atexit.register(self.part)

    @classmethod
    def join(cls) -> Together:
        """Meet the other processes that `torchrun` started, once.

        Raises:
            TargetError: they do not come.
        """
        if cls._joined is None:
            cls._joined = joined = cls._meet()
            joined.direct = Direct.open(joined.count, joined.least)
        return cls._joined

    @classmethod
    def joined(cls) -> Together | None:
        """Return what `join` gave; None where the processes were brought together to train."""
        return cls._joined

    @classmethod
    def _meet(cls) -> Together:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(_own_device())
        try:
            store, rank, count = next(iter(rendezvous("env://", timeout=_MEETING)))
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=PrefixStore("eagle", store),
                rank=rank,
                world_size=count,
                timeout=_COLLECTIVE,
            )
            # A connection of its own: others hold theirs while they wait.
            beats = PrefixStore("eagle-beats", store.clone())
            return cls(rank, count, beats)
        except (RuntimeError, ValueError) as error:
            raise TargetError(
                "target.tp_plan: the other processes do not come "
                f"({clipped(' '.join(str(error).split()))}); start all of them at once with "
                "torchrun --nproc-per-node N"
            ) from error

    @property
    def main(self) -> bool:
        """Whether this is the one that takes requests and prints."""
        return self.rank == 0

    def hold(self, captured: Captured) -> None:
        """Have graphs released before the processes part: NCCL waits for those that captured it."""
        self._captured.add(captured)

    def agree(self, what: str, value: Any) -> None:
        """Refuse to go on where processes were given different things.

        Args:
            what: is compared, for the message.
            value: what JSON can hold; large ones are compared whole.

        Raises:
            PartedError: in every process, with the first process that has another one.
            RequestError: an engine is open, so that the others are not here to agree.
        """
        self.apart(f"another {what}")
        self.compare(what, value)

    def compare(self, what: str, value: Any) -> None:
        """Do as `agree` does, where all are at once by themselves, whoever orders it.

        Raises:
            PartedError: see `agree`.
        """
        text = json.dumps(value, sort_keys=True, default=str)
        found: list[Any] = [None] * self.count
        self._run(lambda: dist.all_gather_object(found, text, group=self._group))
        for rank, other in enumerate(found):
            if other != found[0]:
                raise PartedError(
                    f"process {rank} has another {what} than process 0: "
                    f"{_difference(json.loads(found[0]), json.loads(other))}; every process that "
                    "holds a part of a target is given the same"
                )

    def apart(self, what: str) -> None:
        """Refuse what all processes have to do at once, while the others follow the first one.

        Raises:
            RequestError: an engine is open.
        """
        begin: Callable[[], None] | None = getattr(self._ordered, "begin", None)
        if begin is not None:
            begin()
        elif self.led:
            raise RequestError(
                f"{what} has to wait: an engine is open, and its requests are process 0's, for all "
                "that hold the target; ask the engine there, or close it"
            )

    @contextmanager
    def ordered(self, begin: Callable[[], None]) -> Iterator[None]:
        """Let this thread do what all do at once, though the others follow: they do it by order.

        Args:
            begin: called wherever that would be refused otherwise, with what is done there under
                way; the first one has to tell the others of it, once.
        """
        self._ordered.begin = begin
        try:
            yield
        finally:
            self._ordered.begin = None

    def still(self) -> None:
        """Refuse to begin anything where nothing can be done together any more.

        Raises:
            TargetError: a process is lost, or has left the others.
        """
        if self.gone is not None:
            raise self.gone

    def relay(self, order: bytes = b"") -> bytes:
        """Return what the first process orders; all must call it, and the others wait for it."""
        size = torch.tensor(len(order))
        self._run(lambda: dist.broadcast(size, 0, group=self._orders))
        if not int(size):
            return b""
        data = torch.empty(int(size), dtype=torch.uint8)
        if self.main:
            data = torch.frombuffer(bytearray(order), dtype=torch.uint8)
        self._run(lambda: dist.broadcast(data, 0, group=self._orders))
        return data.numpy().tobytes()

    def share(self, value: Any) -> Any:
        """Return what the first process has; all must call it."""
        box = [value]
        self._run(lambda: dist.broadcast_object_list(box, 0, group=self._group))
        return box[0]

    def least(self, value: int) -> int:
        """Return the least of a number that each process has; all must call it."""
        found = torch.tensor(value)
        self._run(lambda: dist.all_reduce(found, dist.ReduceOp.MIN, group=self._group))
        return int(found)

    def alike(self, what: str, size: int) -> None:
        """Hold a size that was read on the host, within a pass, against the others'.

        What all do at once next would wait for ever, or end the process, where it is another one.

        Args:
            what: has that size.
            size: of it.

        Raises:
            PartedError: see `same`.
        """
        self.same((what, size), News(), apart=f"this one has {size} {what}, another one has not")

    def same(
        self, outcomes: Any, news: News, *, ahead: bool = False, apart: str = _OTHER_TOKENS
    ) -> News:
        """Hold what came of a pass against the others', all of it.

        Args:
            outcomes: what was accepted and chosen, of every slot.
            news: of this process.
            ahead: the next pass is under way, in which a process that failed may never be.
            apart: what is said of it where they differ.

        Returns:
            News of any process, the same in all.

        Raises:
            PartedError: in every process, where they have parted; or in those in which the pass was
                done, where another one failed in it.
        """
        digest = blake2b(repr((self.passes, outcomes)).encode(), digest_size=7).digest()
        least, most, failed, *found = self._hold(int.from_bytes(digest, "little"), news)
        if failed:
            told = (
                f"process {failed - 1} failed in pass {self.passes}, which the others cannot do "
                "without it; what failed is in its own error"
            )
            if ahead:
                self.abandon(told)
            raise PartedError(told)
        if least != most:
            raise PartedError(
                f"the processes that hold the target have parted in pass {self.passes}: "
                f"{apart}, so that what they would say further is nobody's; their hardware and "
                "software should be alike"
            )
        return News(*map(bool, found))

    def failed(self, error: Exception, *, ahead: bool = False) -> Exception:
        """Tell the others that this process failed in a pass, and return what is said of it.

        They are in that pass too, or at its end. Where all failed, or all the others come to the
        end, everybody gives it up and goes on. One that waits inside of the pass waits for ever, so
        it ends itself; see `_look`.

        Args:
            error: what failed.
            ahead: those who come to the end may have sent a pass behind it, which this process has
                not; unless all failed, nobody can go on then.
        """
        if isinstance(error, PartedError) or self.gone is not None:
            return error  # which they know of
        if (lost := self.lost(error)) is not None:
            self.gone = lost
            return lost
        self._say(reason(error))
        try:
            _, most, *_ = self._hold(0, News(), failed=True)
        except TargetError:
            return error  # which says more than that the others have ended because of it
        if ahead and most:
            self.abandon(reason(error))
        else:
            self._say("")
        return error

    def abandon(self, why: str) -> None:
        """Do nothing more with the others: this process has left a pass that they are in."""
        if self.gone is None:
            self.gone = TargetError(
                f"process {self.rank} has left the others in the middle of a pass ({why}); nothing "
                "more can be decoded by them"
            )
            self._say(why)

    def _hold(self, mine: int, news: News, *, failed: bool = False) -> list[int]:
        """Return least and greatest number, who failed (from 1), and news, over all processes."""
        self.passes += 1
        who = self.rank + 1 if failed else 0
        found = torch.tensor([-mine, mine, who, news.came, news.left])
        self._run(lambda: dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group))
        least, *others = found.tolist()
        return [-least, *others]

    def _run(self, collective: Any) -> None:
        self.still()
        try:
            collective()
        except RuntimeError as error:
            self.gone = self._why()
            raise self.gone from error

    def _why(self) -> TargetError:
        """Return why a collective could not be done."""
        if self._failure:
            return TargetError(
                "the other processes that hold the target have ended, since this one failed "
                f"({self._failure}), so nothing more can be decoded"
            )
        return TargetError(_GONE.format(self._missing()))

    def _say(self, failure: str) -> None:
        """Let the others see what failed here, now and with every beat until it is settled."""
        self._failure = clipped(failure, 500)
        with suppress(RuntimeError):  # whoever kept the beats is gone
            self._beats.set(str(self.rank), f"now {self._failure}")

    def lost(self, error: BaseException | None) -> TargetError | None:
        """Return the clear error for what a collective raised, None if it was something else."""
        if isinstance(error, TargetError):
            return None
        if error is not None and error.__cause__ is not None:
            return self.lost(error.__cause__)
        text = str(error).lower()
        # Gloo's and NCCL's sockets say it in these words, whatever the collective is.
        signs = ("connection closed by peer", "connection reset", "gloo", "nccl", "broken pipe")
        if isinstance(error, RuntimeError) and any(sign in text for sign in signs):
            return TargetError(_GONE.format(self._missing()))
        return None

    def _missing(self) -> str:
        """Return which processes have not been heard of for a moment, after that moment."""
        before = self._heard()
        time.sleep(2.5 * _BEAT)
        now = self._heard()
        gone = [str(rank) for rank in range(self.count) if now.get(rank) == before.get(rank)]
        return f"process {', '.join(gone)}" if gone else "one of them"

    def _heard(self) -> dict[int, bytes]:
        try:
            return {r: self._beats.get(str(r)) for r in range(self.count) if self._has(str(r))}
        except RuntimeError:  # whoever kept the beats is gone
            return {0: b""}

    def _has(self, key: str) -> bool:
        found: bool = self._beats.check([key])
        return found

    def _look(self) -> None:
        """Watch over the others until the end, and leave them then; in a thread of its own.

        Leaving may take without an end: NCCL waits for all graphs that captured it, also those that
        are not known here. This thread goes with the program, and Python starts none at its end.
        """
        self._beat()
        self._quiet.set()
        self._leaving.wait()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_device(_own_device())
        for captured in list(self._captured):
            captured.release()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _beat(self) -> None:
        """Beat, and end this process where another one does no more.

        Nothing else would: a collective waits for whoever is lost, and cannot be interrupted. Nor
        can it where another one has failed in the pass that this one waits in.
        """
        heard: dict[int, tuple[bytes, float]] = {}
        failed: dict[int, float] = {}
        number, kept = 0, time.monotonic()
        while not self._over.wait(_BEAT):
            number += 1
            now = time.monotonic()
            try:
                self._beats.set(str(self.rank), f"{number} {self._failure}")
                for rank in range(self.count):
                    beat = self._beats.get(str(rank)) if self._has(str(rank)) else b""
                    if rank not in heard or heard[rank][0] != beat:
                        heard[rank] = (beat, now)
                kept = now
            except RuntimeError:  # the first process keeps the beats
                if now - kept > _LOST / 2 and not self._failure:
                    self._end("process 0")
                continue
            silent = [r for r, (beat, since) in heard.items() if now - since > _LOST]
            if gone := [r for r in silent if heard[r][0] != _OVER]:
                self._end(f"process {', '.join(map(str, gone))}")
            said = {r: beat.decode().partition(" ")[2] for r, (beat, _) in heard.items()}
            failed = {r: failed.get(r, now) for r, why in said.items() if why}
            for rank, since in failed.items():
                if not self._failure and now - since > _LOST / 2:
                    self._end(f"process {rank}", f". It failed: {said[rank]}")

    def _end(self, who: str, why: str = "") -> None:
        if not self._over.is_set():
            print(f"error: {_GONE.format(who)}{why}", file=sys.stderr, flush=True)
            os._exit(_EXIT)

    def part(self) -> None:
        """Leave the others, who need not wait."""
        if self._over.is_set():
            return
        self._over.set()
        self._quiet.wait(2 * _BEAT)
        try:
            if not self._failure:  # which those who wait in a pass still have to see
                self._beats.set(str(self.rank), _OVER.decode())
            end = time.monotonic() + _PARTING
            # The first one keeps the beats: whoever looks for them later would miss it.
            while self.main and self.gone is None and time.monotonic() < end:
                if set(self._heard().values()) == {_OVER}:
                    break
                time.sleep(0.05)
        except RuntimeError:
            pass  # the others have left
        type(self)._joined = None
        self._leaving.set()
        self._watch.join(_PARTING)


def _own_device() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


_GONE = (
    "{} is lost, and with it a part of every layer of the target, so nothing more can be decoded; "
    "what it said last is above, if it said anything (memory that ran out, say)"
)


def _difference(one: Any, other: Any, path: str = "") -> str:
    """Return where two JSON values differ first."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                where = f"{path}.{key}" if path else key
                return _difference(one.get(key), other.get(key), where)
    return f"{path or 'it'} is {clipped(repr(other))}, not {clipped(repr(one))}"
