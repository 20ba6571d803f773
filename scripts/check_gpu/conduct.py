"""One run: everything is prepared side by side, then timed one at a time; judges nothing.

What fails is noted by name and the rest goes on; after each step all that is known is written.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from check_gpu import commands
from check_gpu.figures import Record
from check_gpu.plan import Lane, Plan, Share, case_name
from check_gpu.process import ProcessError, Worker
from check_gpu.suite import run_suite

__all__ = ["PARTS", "USUAL", "Run", "Side"]

PARTS = ("tests", "cycles", "start", "passes")
"""The CUDA tests; cycles and their passes, tau and tokens/s; a command's start; passes alone, of
more sizes, by `eagle bench`."""

USUAL = PARTS[:-1]
"""Those that there is time for."""

_MEASURE = Path(__file__).with_name("measure.py")
_ROUND = 90.0  # seconds after which an answer will not come any more
_LATE = 20.0  # seconds under which no more tests are begun
_PHASES = 3  # times that the phases of a cycle are timed, at most
_GRACE = 45.0  # seconds that a preparation which has begun may overrun
_COMPILERS = "4"  # processes that compile for each lane: there are several lanes


@dataclass
class Side:
    """A checkout under measurement.

    Attributes:
        name: ``here`` or ``beside``.
        folder: where it is staged.
        record: what was found so far.
    """

    name: str
    folder: Path
    record: Record = field(default_factory=Record)

    def env(self) -> dict[str, str]:
        """Return the environment in which its Python finds it before anything installed."""
        paths = [str(self.folder), os.environ.get("PYTHONPATH", "")]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONSAFEPATH": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


@dataclass
class _Timed:
    """A lane of one side, and the cases that it has prepared."""

    side: Side
    lane: Lane
    worker: Worker
    ready: list[tuple[str, int, float]] = field(default_factory=list)


class Run:
    """One run.

    Args:
        plan: what to measure.
        sides: this checkout, and maybe another.
        parts: of `PARTS`.
        device: ``cuda`` or ``cpu``.
        out: folder for logs and the files of figures.
        seconds: for everything.
        say: called with a line about what goes on.
        measure: the program that measures.
    """

    def __init__(
        self,
        plan: Plan,
        sides: list[Side],
        parts: tuple[str, ...],
        device: str,
        out: Path,
        seconds: float,
        say: Callable[[str], None],
        measure: Path = _MEASURE,
    ) -> None:
        self.plan, self.sides, self.parts, self.device = plan, sides, parts, device
        self.out, self._say, self._measure = out, say, measure
        self._began = time.monotonic()
        self._seconds, self._share = seconds, Share()

    async def all(self) -> None:
        """Do every part that was asked for, as far as time allows."""
        if not await self._machine():
            return
        lanes = self._lanes() if "cycles" in self.parts else []
        try:
            tests = asyncio.create_task(self._tests(self.sides[0]))
            await asyncio.gather(tests, *(self._prepare(timed, tests) for timed in lanes))
            await self._rounds(lanes)
            await self._phases(lanes)
        finally:
            await asyncio.gather(*(timed.worker.stop() for timed in lanes))
        if "start" in self.parts:
            await self._guarded("start", self.sides, self._start())
        if "passes" in self.parts:
            await self._guarded("passes", self.sides, self._passes())
        if self.sides[0].record.tests.get("not run in time") and self._left() > _LATE:
            await self._guarded("tests", self.sides[:1], self._suite(self.sides[0], late=True))

    def _left(self, share: float = 1.0) -> float:
        """Return the seconds until a share of the time is over."""
        return self._began + share * self._seconds - time.monotonic()

    def say(self, line: str) -> None:
        """Tell a line, with the time."""
        self._say(f"{time.monotonic() - self._began:4.0f} s  {line}")

    def _missing(self, side: Side, name: str, reason: str) -> None:
        side.record.missing[name] = reason
        self.say(f"{side.name}: {name}: {reason:.160}")
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        for side in self.sides:
            name = "figures.json" if side.name == "here" else f"{side.name}.json"
            side.record.write(self.out / name)

    async def _guarded(self, name: str, sides: Sequence[Side], work: Awaitable[None]) -> None:
        """Wait for a part; a fault in it costs no other part its figures."""
        try:
            await work
        except Exception as error:
            plain = isinstance(error, ProcessError)
            for side in sides:
                self._missing(
                    side, name, f"{error}" if plain else f"{type(error).__name__}: {error}"
                )

    async def _machine(self) -> bool:
        """Ask every side for its machine; one that cannot even be imported is not measured."""
        kept = []
        for side in self.sides:
            worker = self._worker(side, {"machine": True, "device": self.device}, "machine")
            try:
                found = await worker.start(min(120.0, self._left()))
            except ProcessError as error:
                self._missing(side, "machine", str(error))
                continue
            finally:
                await worker.stop()
            side.record.hardware, side.record.versions = found["hardware"], found["versions"]
            side.record.work = self.plan.work
            versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
            self.say(f"{side.name}: {found['hardware']}, {versions}")
            kept.append(side)
        self.sides = kept
        self.write()
        return bool(kept) and kept[0].name == "here"

    def _worker(self, side: Side, asked: dict[str, Any], name: str) -> Worker:
        env = side.env() | {"TORCHINDUCTOR_COMPILE_THREADS": _COMPILERS}
        log = self.out / f"{side.name}-{name.replace('/', '-')}.log"
        log.unlink(missing_ok=True)
        command = [sys.executable, str(self._measure), json.dumps(asked)]
        return Worker(command, env, log)

    def _lanes(self) -> list[_Timed]:
        lanes = []
        for lane in self.plan.lanes(twice=len(self.sides) > 1):
            for side in self.sides:
                asked = {
                    "shape": None if lane.shape == "135m" else lane.shape,
                    "specs": self.plan.specs,
                    "batches": lane.batches,
                    "device": self.device,
                    "prompts": self.plan.prompts,
                    "tokens": self.plan.tokens,
                    "length": self.plan.length,
                }
                lanes.append(_Timed(side, lane, self._worker(side, asked, lane.name)))
        return lanes

    async def _tests(self, side: Side) -> None:
        if "tests" in self.parts:
            await self._guarded("tests", [side], self._suite(side))

    async def _suite(self, side: Side, *, late: bool = False) -> None:
        """Run the tests, or those that there was no time for beside what was prepared."""
        limit = self._left(self._share.tests if "cycles" in self.parts and not late else 1.0)
        left = side.record.tests["not run in time"] if late else ()
        found = await run_suite(side.folder, side.env(), self.out, limit, self.device, left)
        side.record.tests = found
        words = [f"{len(v) if isinstance(v, list) else v} {k}" for k, v in found.items() if v]
        self.say(f"tests: {', '.join(words) or 'none'}")
        self.write()

    async def _prepare(self, timed: _Timed, tests: asyncio.Task[None]) -> None:
        if timed.lane.heavy:
            await tests
        await self._guarded(timed.lane.name, [timed.side], self._warm(timed))

    async def _warm(self, timed: _Timed) -> None:
        """Load a lane and let it prepare case after case, until another would not be in time."""
        side, lane = timed.side, timed.lane
        found = await timed.worker.start(self._left(self._share.prepare))
        self.say(f"{side.name}: {lane.name} loaded, {found['prompts']} of {found['texts']} prompts")
        longest = 0.0
        for case in self.plan.cases(lane):
            name = case_name(lane.shape, case)
            left = self._left(self._share.prepare)
            if left < longest / 2:
                self._missing(side, name, "not prepared in time")
                continue
            try:
                question = {"do": "warm", "case": case, "with": [self.plan.rounds]}
                found = await timed.worker.ask(question, left + _GRACE)
            except ProcessError as error:
                self._missing(side, name, str(error))
                continue
            longest = max(longest, found["seconds"])
            timed.ready.append(case)
        self.say(f"{side.name}: {lane.name} prepared, {longest:.0f} s at most for one case")

    def _turns(self, lanes: list[_Timed]) -> list[tuple[tuple[str, int, float], list[_Timed]]]:
        """Return every case that somebody has prepared, with those whose turns follow each other.

        Cases of the smallest batch come first at each shape: if time runs out, they are there.
        """
        together: dict[tuple[Any, ...], list[_Timed]] = {}
        for timed in lanes:
            for case in timed.ready:
                together.setdefault((timed.lane, case), []).append(timed)
        order = sorted(together, key=lambda key: (key[1][2], key[1][1]))
        return [(key[1], together[key]) for key in order]

    async def _rounds(self, lanes: list[_Timed]) -> None:
        turns = self._turns(lanes)
        if not turns:
            return
        self.say(f"timing {len(turns)} cases")
        took = 0.0
        for number in range(self.plan.rounds):
            if number and self._left(self._share.rounds) < took:
                self.say(f"no time for more than {number} of {self.plan.rounds} rounds")
                break
            began = time.monotonic()
            for case, group in turns:
                for timed in group:
                    if case in timed.ready:
                        question = {"do": "round", "case": case, "with": [number]}
                        await self._take(timed, case, question)
            took = time.monotonic() - began
            self.write()

    async def _phases(self, lanes: list[_Timed]) -> None:
        """Time the phases of greedy cycles, each captured anew for it, as often as time allows."""
        first = self.plan.temperatures[0]
        turns = [(case, group) for case, group in self._turns(lanes) if case[2] == first]
        for number in range(_PHASES):
            for case, group in turns:
                for timed in group:
                    if case not in timed.ready:
                        continue
                    if self._left(self._share.phases) > 0:
                        await self._take(timed, case, {"do": "phases", "case": case})
                    elif not number:
                        name = f"{case_name(timed.lane.shape, case)}/pass_ms"
                        self._missing(timed.side, name, "no time left")
        self.write()

    async def _take(self, timed: _Timed, case: Any, question: dict[str, Any]) -> None:
        name = case_name(timed.lane.shape, case)
        try:
            found = await timed.worker.ask(question, min(_ROUND, self._left()))
        except ProcessError as error:
            self._missing(timed.side, f"{name} ({question['do']})", str(error))
            timed.ready.remove(case)
            return
        for kind, value in found.items():
            timed.side.record.add(f"{name}/{kind}", value)

    async def _start(self) -> None:
        """Start a command several times, each side in its turn; the first time does not count."""
        for number in range(self.plan.starts + 1):
            for side in self.sides:
                limit = min(90.0, self._left(self._share.start))
                if "start" in side.record.missing:
                    continue
                try:
                    first, end = await commands.start(side.env(), self.out, self.device, limit)
                except ProcessError as error:
                    self._missing(side, "start", str(error))
                    continue
                if number:
                    side.record.add("start/first_s", first)
                    side.record.add("start/end_s", end)
        self.say("start timed")
        self.write()

    async def _passes(self) -> None:
        """Time passes alone at every shape and, where the command knows it, every batch."""
        batched = {
            side.name: await commands.knows_batch(side.env(), self.out) for side in self.sides
        }
        for batch in self.plan.batches:
            for shape in self.plan.shapes:
                if shape == "tiny":
                    continue
                for side in self.sides:
                    name = f"{shape}/passes/b{batch}"
                    if batch > 1 and not batched[side.name]:
                        self._missing(side, name, "`eagle bench passes` has no --batch")
                        continue
                    try:
                        await commands.passes(
                            side.record, side.env(), self.out, self.device, shape, batch,
                            self.plan.nodes, self._left(self._share.passes),
                        )  # fmt: skip
                    except ProcessError as error:
                        self._missing(side, name, str(error))
                    self.write()
        self.say("passes timed")
