"""One series: texts, then trainings side by side, each measured when it ends; judges nothing.

What fails is noted by name and the rest goes on; after each run all that is known is written. A
run that is finished is not made again, and one that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from check_gpu.figures import write_whole
from check_gpu.process import last_words
from train_series import child
from train_series.plan import Plan, Training, overrides
from train_series.results import Found, Results, curve_of

__all__ = ["RESULTS", "Series", "Setting"]

RESULTS = "results.json"
_WEIGH = Path(__file__).with_name("weigh.py")
_SAVING = 30.0  # seconds at the end for what is interrupted to save what it has, and for the rest
_START = 75.0  # seconds that a training takes besides its steps: loading, compiling, measuring


@dataclass(frozen=True)
class Setting:
    """Where and how a series runs.

    Attributes:
        python: what starts Python.
        env: of all processes.
        work: folder of the runs.
        out: folder that results and wanted heads are copied to; may be the same.
        device: ``auto``, ``cuda`` or ``cpu``.
        seconds: for everything.
        at_once: trainings side by side.
        texts: files of texts that are there already.
        more: settings of every training, for trials.
        commit: of the checkout.
        say: called with a line about what goes on.
    """

    python: Sequence[str]
    env: Mapping[str, str]
    work: Path
    out: Path
    device: str
    seconds: float
    at_once: int
    texts: Mapping[str, Path]
    more: Mapping[str, Any]
    commit: str
    say: Callable[[str], None]


class SeriesError(Exception):
    """Nothing can be begun; the message says why."""


class Series:
    """A plan that is being carried out.

    Args:
        plan: what is wanted.
        setting: where and how.
        before: what is known of it already.
    """

    def __init__(self, plan: Plan, setting: Setting, before: Results) -> None:
        self.plan, self.setting, self.results = plan, setting, before
        self._began = time.monotonic()
        self._busy = 0
        self._asking = asyncio.Lock()
        self._weights: dict[str, dict[str, Any]] = {}
        self._machine: dict[str, Any] = {}
        self._files = {
            name: Path(setting.texts.get(name, setting.work / text.file)).resolve()
            for name, text in plan.texts.items()
        }

    async def all(self) -> None:
        """Do all that there is time for.

        Raises:
            SeriesError: a config is wrong, or a text cannot be made.
        """
        if self.complete:
            return
        await self._weigh()
        for name in self.plan.beside:
            self.results.others.setdefault(name, self._fresh(name))
        for run in self.plan.runs:
            self.results.runs.setdefault(run.name, self._fresh(run))
        self.write()
        for name in self._needed():
            await self._make(name)
        beside = [name for name in self.plan.beside if not self._known(name)]
        waiting: list[Training | str] = [
            *beside[:1],  # the target's answers are there before the first training ends
            *(run for run in self.plan.runs if not self._known(run.name)),
            *beside[1:],
        ]
        going: set[asyncio.Task[None]] = set()
        try:
            while waiting or going:
                while len(going) < self.setting.at_once:
                    job = next((one for one in waiting if self._fits(one, len(going) + 1)), None)
                    if job is None:
                        break
                    waiting.remove(job)
                    going.add(asyncio.create_task(self._guarded(job)))
                if not going:
                    break
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)
        for job in waiting:
            self._note(job, self._fresh(job), "not begun", "too little time was left")

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        names = [*(run.name for run in self.plan.runs), *self.plan.beside]
        return all(self._known(name) for name in names)

    def _known(self, name: str) -> bool:
        found = (self.results.runs | self.results.others).get(name)
        return found is not None and found.finished

    def _left(self) -> float:
        return self._began + self.setting.seconds - time.monotonic()

    def _fits(self, job: Training | str, busy: int) -> bool:
        """Return whether a job is begun: nothing is, that would not be finished.

        Processes that share a device are reckoned to share its time, and to gain nothing by it.
        """
        reckoned = 0.0
        if isinstance(job, Training) and not self._is_trained(job.name):
            reckoned = job.reckoned * (1 if job.seconds else busy)
        return self._left() > _SAVING + _START + reckoned

    def _say(self, line: str) -> None:
        self.setting.say(f"{time.monotonic() - self._began:4.0f} s  {line}")

    def _needed(self) -> list[str]:
        """Return the texts that are wanted and not there, and those that they are made of."""
        runs = [run for run in self.plan.runs if not self._known(run.name)]
        wanted = {run.text for run in runs if run.text and not self._is_trained(run.name)}
        found = []
        for name in reversed(self.plan.texts):
            if name in wanted and not self._made(name):
                found.append(name)
                words = self.plan.texts[name].command
                wanted |= {other for other in self.plan.texts if f"${other}" in words}
        return found[::-1]

    def _made(self, name: str) -> bool:
        made = (self.setting.work / f"{name}.made").exists() and self._files[name].exists()
        return made or name in self.setting.texts

    async def _weigh(self) -> None:
        """Check all configs, and find out what they come to and on what they run."""
        runs = {
            run.name: {
                "config": run.config,
                "set": overrides(self._settings(run))[1::2],
                "tokens": run.tokens,
            }
            for run in self.plan.runs
        }
        trees = self.plan.evaluation.trees
        asked = {"device": self.setting.device, "runs": runs, "trees": trees}
        log, out = self.setting.work / "weigh.log", self.setting.work / "weigh.json"
        command = [*self.setting.python, str(_WEIGH), json.dumps(asked)]
        code = await child.run(command, self.setting.env, log, out, self._left())
        try:
            found = json.loads(out.read_text(encoding="utf-8"))
        except ValueError:
            if code is None:
                raise SeriesError("there was too little time to read the plan through") from None
            said = last_words(log) or f"exit status {code}"
            raise SeriesError(f"the plan cannot be read through: {said}") from None
        if "error" in found:
            raise SeriesError(found["error"])
        self._weights = found["runs"]
        self._machine = {key: found[key] for key in ("hardware", "versions")}
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        self._say(f"{found['hardware']}, {versions}")

    async def _make(self, name: str) -> None:
        """Make a text; one that may take so long is used as far as it is by then."""
        text, work = self.plan.texts[name], self.setting.work
        words = text.words(self._files)
        limit = self._left() - _SAVING
        limit = limit if text.seconds is None else min(limit, text.seconds)
        self._say(f"{name}: eagle {' '.join(words)}")
        code = await self._eagle(words, name, limit)
        if code and not (code is None and text.seconds is not None):
            raise SeriesError(f"{name}: {self._last(name) or f'exit status {code}'}")
        if code is None and text.seconds is None:
            raise SeriesError(f"{name}: there was too little time to make it")
        if not self._files[name].is_file():
            raise SeriesError(f"{name}: {self._files[name].name} was not made in time")
        (work / f"{name}.made").touch()

    def _eagle(self, words: Sequence[str], name: str, limit: float) -> Any:
        command = [*self.setting.python, "-m", "eagle.cli", *words]
        work = self.setting.work
        return child.run(command, self.setting.env, work / f"{name}.log", self._out(name), limit)

    def _out(self, name: str) -> Path:
        return self.setting.work / f"{name}.out"

    def _last(self, name: str) -> str:
        return last_words(self.setting.work / f"{name}.log")

    def _settings(self, run: Training) -> dict[str, Any]:
        """Return what a training is told beside its config, where it writes left out."""
        length: dict[str, Any] = {}
        if run.name in self._weights:
            length = {"steps": self._weights[run.name]["steps"]}
        elif run.steps is not None:
            length = {"steps": run.steps}
        if run.seconds is not None:  # as many epochs as the clock allows
            length = {"optimizer.seconds": run.seconds, "epochs": 1000.0}
        device = {} if self.setting.device == "auto" else {"target.device": self.setting.device}
        fixed = {"evaluation.every": None, "tensorboard": False}
        return fixed | self.plan.set | run.set | length | device | dict(self.setting.more)

    def _fresh(self, job: Training | str) -> Found:
        """Return a record with all that is known of a job before it begins."""
        found = Found(**self._machine, commit=self.setting.commit)
        if isinstance(job, Training):
            found.asked = self.plan.asked(job, dict(self.setting.more))
            found.config, found.overrides = Path(job.config).name, self._settings(job)
            found.variant, found.series = job.variant, job.series
        return found

    def _note(self, job: Training | str, found: Found, state: str, why: str = "") -> None:
        """Write down how a job stands."""
        found.state, found.why = state, why
        if isinstance(job, Training):
            self.results.runs[job.name] = found
            name = job.name
        else:
            self.results.others[job] = found
            name = job
        self._say(f"{name}: {state}{': ' + why if why else ''}")
        self.write()

    def write(self) -> None:
        """Write what is known so far, in the runs' folder and where it is wanted."""
        for folder in {self.setting.work, self.setting.out}:
            self.results.write(folder / RESULTS)

    async def _guarded(self, job: Training | str) -> None:
        found = self._fresh(job)
        self._busy += 1
        try:
            await (self._train(job, found) if isinstance(job, Training) else self._hold(job, found))
        except (OSError, ValueError, KeyError, SeriesError) as error:
            self._note(job, found, "failed", str(error))
        finally:
            self._busy -= 1

    def _trained(self, name: str) -> Path:
        return self.setting.work / f"{name}.trained.json"

    def _is_trained(self, name: str) -> bool:
        try:  # a machine may have gone down while it was written
            return isinstance(json.loads(self._trained(name).read_text("utf-8")), dict)
        except (OSError, ValueError):
            return False

    async def _train(self, run: Training, found: Found) -> None:
        """Train a head and measure it."""
        work, name = self.setting.work, run.name
        folder = work / name
        if not self._is_trained(name):
            settings = self._settings(run) | {"output": str(folder)}
            if run.text is not None:
                settings["data.packed"] = str(self._files[run.text])
            words = ["train", run.config, *overrides(settings), "--resume", "--json"]
            code = await self._eagle(words, name, self._left() - _SAVING)
            found.beside = self._busy
            if code is None:
                return self._stopped(run, found)
            said = json.loads(self._out(name).read_text("utf-8")) if code == 0 else {}
            if not said.get("finished"):
                why = self._last(name) or f"exit status {code}"
                return self._note(run, found, "failed", why)
            write_whole(self._trained(name), json.dumps(said))
        self._add_curve(run, found)
        head = folder / "head"
        settings = {"head.name": self._weights[name]["head"], "head.weights": str(head)}
        if not await self._measure(name, settings, found):
            return self._note(
                run, found, "stopped", "trained; its time was up before it was measured"
            )
        found.bytes = sum(file.stat().st_size for file in head.iterdir())
        if run.keep:
            self._pack(name, head)
        for left in ("checkpoint.pt", "answers.json", "text.npz"):
            (folder / left).unlink(missing_ok=True)
        shutil.rmtree(folder / "best", ignore_errors=True)
        return self._note(run, found, "finished", self._told(found))

    def _add_curve(self, run: Training, found: Found) -> None:
        """Add what training itself found."""
        for key, value in curve_of(self.setting.work / run.name / "log.jsonl").items():
            setattr(found, key, value)
        found.tokens = found.steps * self._weights[run.name]["tokens_per_step"]
        said = json.loads(self._trained(run.name).read_text("utf-8"))
        found.heldout_tau = {
            tree: by["held-out"] for tree, by in said["tau"].items() if "held-out" in by
        }
        rates = said["n_alpha"].get("held-out", [])  # not a number where no cycle came so far
        found.n_alpha = [None if rate != rate else round(rate, 4) for rate in rates]

    def _stopped(self, run: Training, found: Found) -> None:
        try:
            steps = curve_of(self.setting.work / run.name / "log.jsonl")["steps"]
        except ValueError:
            steps = 0
        found.steps = steps
        wanted = self._weights[run.name]["steps"]
        of = f" of {wanted:,}" if wanted else ""
        self._note(run, found, "stopped", f"its time was up at step {steps:,}{of}")

    async def _hold(self, name: str, found: Found) -> None:
        """Measure a head that is there already."""
        if not await self._measure(name, self.plan.beside[name], found):
            return self._note(name, found, "stopped", "its time was up")
        return self._note(name, found, "finished", self._told(found))

    def _told(self, found: Found) -> str:
        (tree, *_), speed = found.tau, found.tokens_per_second
        trained = f"{found.tokens:,} tokens at {speed[1]:,} a second, " if speed else ""
        return f"{trained}tau {found.mean_tau():.2f} ({tree})"

    async def _measure(self, name: str, settings: dict[str, Any], found: Found) -> bool:
        """Add what ``eagle bench ranks`` says; return whether there was time for it."""
        asking, answers = self.plan.evaluation, self.setting.work / "answers.json"
        device = {} if self.setting.device == "auto" else {"target.device": self.setting.device}
        words = ["bench", "ranks", "eagle", "--no-keep", "--json", "--limit", str(asking.limit)]
        words += ["--max-new-tokens", str(asking.max_new_tokens), "--answers", str(answers)]
        for kind, file in asking.prompts.items():
            words += ["--prompts", f"{kind}={file}"]
        for tree in asking.trees:
            words += ["--tree", json.dumps(tree)]
        words += overrides(device, asking.set, settings)
        measuring = f"{name}.ranks"
        async with self._asking:  # the first one asks the target, and others wait for its answers
            asked = answers.exists()
            if not asked:
                code = await self._eagle(words, measuring, self._left() - _SAVING / 2)
        if asked:
            code = await self._eagle(words, measuring, self._left() - _SAVING / 2)
        if code is None:
            return False
        if code:
            raise SeriesError(self._last(measuring) or f"exit status {code}")
        said = json.loads(self._out(measuring).read_text("utf-8"))
        found.tau = {
            tree: {kind: round(tau, 4) for kind, tau in by_set.items()}
            for tree, by_set in said["simulation"]["tau"].items()
        }
        found.right = [round(level[0], 4) for level in said["levels"]]
        found.positions = said["positions"]
        return True

    def _pack(self, name: str, head: Path) -> None:
        """Put a head into one file where it is wanted."""
        folder = self.setting.out / "heads"
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{name}.{os.getpid()}"
        with tarfile.open(aside, "w") as file:
            file.add(head, arcname=name)
        aside.replace(folder / f"{name}.tar")
