"""The command line of `scripts/train-series`: options in, results and a report out."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from check_gpu.staging import commit_of, stage
from train_series.conduct import RESULTS, Series, SeriesError, Setting
from train_series.plan import Plan, load_plan, read_yaml
from train_series.report import report
from train_series.results import Results, merged

__all__ = ["main"]

_ROOT = Path(__file__).parents[2]
_PLANS = Path(__file__).with_name("plans")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train-series",
        description="Train heads one beside the other by a plan, measure all of them alike, and "
        "draw what came of it. Whatever stops it, the same command goes on.",
        epilog="exit status: 0 every run is finished, 1 some are not, 2 nothing could be begun",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and measure what a plan says")
    add = run.add_argument
    add("plan", help=f"a YAML file, or one of {', '.join(_names())}")
    add("--work", type=Path, metavar="DIR", help="of the runs (default runs/PLAN)")
    add("--out", type=Path, metavar="DIR", help="for results and wanted heads (default: --work)")
    add("--minutes", type=float, help="for everything (default: the plan's)")
    add("--at-once", type=int, metavar="N", help="trainings side by side (default: the plan's)")
    add("--text", action="append", metavar="NAME=FILE", help="a text that is there already")
    add("--prompts", action="append", metavar="KIND=FILE", help="in place of the plan's prompts")
    add("--limit", type=int, metavar="N", help="prompts of each kind (default: the plan's)")
    add("--from", dest="before", type=Path, metavar="FILE", help=f"{RESULTS} of an earlier machine")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--set", action="append", metavar="KEY=VALUE", help="of every training, for trials")
    add("--commit", default="", help="of this checkout, where git does not know")
    drawn = commands.add_parser("report", help="a table and a picture of one or several results")
    drawn.add_argument("results", type=Path, nargs="+", metavar="FILE")
    drawn.add_argument("--out", type=Path, default=Path("series"), metavar="NAME",
                       help="NAME.md and NAME.png are written (default series)")  # fmt: skip
    return parser


def _names() -> list[str]:
    return sorted(path.stem for path in _PLANS.glob("*.yaml"))


def main(arguments: Sequence[str] | None = None, python: Sequence[str] = (sys.executable,)) -> int:
    """Run the command, and return its exit status; *python* is what starts processes."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "report":
            for path in report(merged(options.results), options.out):
                print(path)
            return 0
        return _run(options, python)
    except (ValueError, OSError, SeriesError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            told = f"{error.filename}: {error.strerror}"
        print(f"train-series: {told}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, python: Sequence[str]) -> int:
    began = time.monotonic()
    path = Path(options.plan)
    if path.suffix not in (".yaml", ".yml"):
        path = _PLANS / f"{options.plan}.yaml"
        if not path.exists():
            raise ValueError(f"there is no plan {options.plan!r}; there is {', '.join(_names())}")
    plan = _wanted(load_plan(path), options)
    texts = {name: Path(file) for name, file in _pairs(options.text, "--text").items()}
    for name, file in texts.items():
        if name not in plan.texts:
            known = ", ".join(plan.texts) or "none"
            raise ValueError(f"--text: the plan has no text {name!r}; it has {known}")
        if not file.is_file():
            raise ValueError(f"--text {name}: there is no file {file}")
    work = options.work or _ROOT / "runs" / path.stem
    out = options.out or work
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    given = _pairs(options.set, "--set").items()
    more = {key: read_yaml(value, f"--set {key}") for key, value in given}
    with _alone(work, out), tempfile.TemporaryDirectory(prefix="train-series-") as staged:
        files = [work / RESULTS, *([options.before] if options.before else [])]
        before = _before(plan, more, files)
        paths = [str(stage(_ROOT, Path(staged) / "here")), os.environ.get("PYTHONPATH", "")]
        setting = Setting(
            python=python,
            env=os.environ | {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONSAFEPATH": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "TORCHINDUCTOR_COMPILE_THREADS": "4",  # several compile at once
            },
            work=work.resolve(),
            out=out.resolve(),
            device=options.device,
            seconds=60 * plan.minutes - (time.monotonic() - began),
            at_once=plan.at_once,
            texts=texts,
            more=more,
            commit=options.commit or commit_of(_ROOT),
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
        series = Series(plan, setting, before)
        try:
            asyncio.run(_until_stopped(series))
        except asyncio.CancelledError:
            print("stopped; the same command goes on", flush=True)
        series.write()
    print(out / RESULTS, flush=True)
    return int(not series.complete)


@contextmanager
def _alone(work: Path, out: Path) -> Iterator[None]:
    """Keep a second series out of the folders of this one, for as long as its process lives.

    Raises:
        SeriesError: another one is at work in one of them.
    """
    with ExitStack() as held:
        for folder, option in {out.resolve(): "--out", work.resolve(): "--work"}.items():
            try:
                held.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout as error:
                raise SeriesError(
                    f"another train-series is at work in {folder}; wait for its end, or give "
                    f"another {option}"
                ) from error
        yield


async def _until_stopped(series: Series) -> None:
    """Carry a series out; asked to stop, let what runs save what it has."""
    task = asyncio.ensure_future(series.all())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def _wanted(plan: Plan, options: argparse.Namespace) -> Plan:
    """Return a plan as the options change it."""
    asked: dict[str, Any] = {}
    if options.prompts:
        files = _pairs(options.prompts, "--prompts")
        asked["prompts"] = {kind: str(Path(file).resolve()) for kind, file in files.items()}
    if options.limit is not None:
        asked["limit"] = _positive(options.limit, "--limit")
    changes: dict[str, Any] = {"evaluation": plan.evaluation.model_copy(update=asked)}
    if options.minutes is not None:
        changes["minutes"] = _positive(options.minutes, "--minutes")
    if options.at_once is not None:
        changes["at_once"] = _positive(options.at_once, "--at-once")
    return plan.model_copy(update=changes)


def _positive(value: float, option: str) -> float:
    if not value > 0:
        raise ValueError(f"{option} should be above 0, not {value:g}")
    return value


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    found = {}
    for one in given or ():
        name, sign, value = one.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} {one}: should be NAME=VALUE")
        found[name] = value
    return found


def _before(plan: Plan, more: dict[str, Any], files: Sequence[Path]) -> Results:
    """Return what is known already, after checking that it is of this plan."""
    asked = plan.evaluation
    counted = f"at most {asked.limit} prompts of each of {', '.join(asked.prompts)}"
    known = Results(plan.about, plan.measured, f"{counted}; {asked.max_new_tokens} new tokens")
    for file in files:
        if not file.exists() and file.name == RESULTS and file is files[0]:
            continue
        found = Results.read(file)
        if found.measured != known.measured:
            raise ValueError(
                f"{file} holds figures on other prompts or trees than this plan's; "
                f"{'give another --work' if file is files[0] else 'leave out --from'}, or give the "
                "same --prompts and --limit"
            )
        for run in plan.runs:
            one = found.runs.get(run.name)
            if one is not None and one.asked != plan.asked(run, more):
                raise ValueError(
                    f"{file} holds another run called {run.name!r}, with other settings; "
                    f"{'give another --work' if file is files[0] else 'leave out --from'}, or give "
                    "the same settings"
                )
        known.runs |= {n: one for n, one in found.runs.items() if one.finished}
        known.others |= {n: one for n, one in found.others.items() if one.finished}
    return known
