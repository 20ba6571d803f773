"""The processes that hold one target together, each a part of every layer.

All run the same command and decide alike, from the same logits and uniforms. Here they meet, hold
what they decided against each other, and notice at once when one is lost. Knows torch.distributed;
knows no model and no cycle.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from eagle.errors import PartedError, TargetError, clipped

__all__ = ["Together"]

_MEETING = timedelta(minutes=2)  # that the first waits for the last at the start
_COLLECTIVE = timedelta(minutes=30)  # compiling may take one longer than another
_BEAT = 1.0  # seconds
_LOST = 20.0  # seconds without a beat: whoever is killed is noticed by the others within 30
_PARTING = 5.0  # that the first waits for the others at the end
_EXIT = 2
_OVER = b"over"


class Together:
    """One process among those that hold a target; `join` gives it.

    Attributes:
        rank: which one this is, from 0; the first one takes requests and prints.
        count: how many there are.
    """

    _joined: Together | None = None

    def __init__(self, rank: int, count: int, beats: Any) -> None:
        self.rank, self.count = rank, count
        self._beats = beats
        # Of its own on the host: what is decided is known there, and NCCL has no numbers of it.
        self._group = dist.new_group(backend="gloo", timeout=_COLLECTIVE)
        self._over = threading.Event()
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
            cls._joined = cls._meet()
        return cls._joined

    @classmethod
    def joined(cls) -> Together | None:
        """Return what `join` gave; None where the processes were brought together to train."""
        return cls._joined

    @classmethod
    def _meet(cls) -> Together:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
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

    def agree(self, what: str, value: Any) -> None:
        """Refuse to go on where processes were given different things.

        Args:
            what: is compared, for the message.
            value: what JSON can hold; large ones are compared whole.

        Raises:
            PartedError: in every process, with the first process that has another one.
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

    def same(self, cycle: int, outcomes: Sequence[Sequence[int]]) -> None:
        """Hold what came of a pass against the others', all of it.

        Args:
            cycle: its number.
            outcomes: what was accepted and chosen, of every slot.

        Raises:
            PartedError: in every process, where they have parted.
        """
        digest = blake2b(repr((cycle, outcomes)).encode(), digest_size=7).digest()
        mine = int.from_bytes(digest, "little")
        ends = torch.tensor([mine, -mine])
        self._run(lambda: dist.all_reduce(ends, dist.ReduceOp.MIN, group=self._group))
        if int(ends[0]) != -int(ends[1]):
            raise PartedError(
                f"the processes that hold the target have parted in pass {cycle}: they accepted or "
                "chose different tokens, so that what they would say further is nobody's; their "
                "hardware and software should be alike"
            )

    def _run(self, collective: Any) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise TargetError(_GONE.format(self._missing())) from error

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
        """Beat, and end this process where another one does no more; in a thread of its own.

        Nothing else would: a collective waits for whoever is lost, and cannot be interrupted.
        """
        heard: dict[int, tuple[bytes, float]] = {}
        number, kept = 0, time.monotonic()
        while not self._over.wait(_BEAT):
            number += 1
            now = time.monotonic()
            try:
                self._beats.set(str(self.rank), str(number))
                for rank in range(self.count):
                    beat = self._beats.get(str(rank)) if self._has(str(rank)) else b""
                    if rank not in heard or heard[rank][0] != beat:
                        heard[rank] = (beat, now)
                kept = now
            except RuntimeError:  # the first process keeps the beats
                if now - kept > _LOST / 2 and not self._over.is_set():
                    self._end("process 0")
                continue
            silent = [r for r, (beat, since) in heard.items() if now - since > _LOST]
            if gone := [r for r in silent if heard[r][0] != _OVER]:
                self._end(f"process {', '.join(map(str, gone))}")

    def _end(self, who: str) -> None:
        if not self._over.is_set():
            print(f"error: {_GONE.format(who)}", file=sys.stderr, flush=True)
            os._exit(_EXIT)

    def part(self) -> None:
        """Leave the others, who need not wait."""
        if self._over.is_set():
            return
        self._over.set()
        self._watch.join(2 * _BEAT)
        try:
            self._beats.set(str(self.rank), _OVER.decode())
            end = time.monotonic() + _PARTING
            # The first one keeps the beats: whoever looks for them later would miss it.
            while self.main and time.monotonic() < end and set(self._heard().values()) != {_OVER}:
                time.sleep(0.05)
        except RuntimeError:
            pass  # the others have left
        type(self)._joined = None
        if dist.is_initialized():
            dist.destroy_process_group()


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
