"""The command line of `scripts/check-gpu`: options in, tables and an exit status out."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from check_gpu.conduct import PARTS, USUAL, Run, Side
from check_gpu.figures import Record
from check_gpu.plan import Plan, prompts_of
from check_gpu.staging import commit_of, stage
from check_gpu.table import case_lines, other_lines, test_lines, worse_lines
from check_gpu.verdicts import against_record, beside, incomparable

__all__ = ["main", "report"]

_ROOT = Path(__file__).parents[2]
_RECORDED = _ROOT / "docs" / "figures" / "gpu.json"
_PROMPTS = Path(__file__).with_name("prompts.jsonl")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check-gpu",
        description="Run the CUDA tests and take the key figures, in under ten minutes; say which "
        "got worse than the recorded ones by more than their spread.",
        epilog="exit status: 0 nothing to complain of, 1 a test failed, a figure is worse or a "
        "part broke, 2 nothing could be measured",
    )
    add = parser.add_argument
    add("--record", action="store_true", help="write the figures as the ones to compare with")
    add("--figures", type=Path, default=_RECORDED, metavar="FILE", help="the recorded figures")
    add("--beside", type=Path, metavar="DIR", help="another checkout, measured in turns with this")
    add("--prompts", type=Path, default=_PROMPTS, metavar="FILE", help="JSONL, one prompt a line")
    add("--only", default=",".join(USUAL), metavar="PART,...", help=f"of {', '.join(PARTS)}")
    add("--shapes", default="135m,llama2-7b", metavar="NAME,...", help="135m is the embedded model")
    add("--batches", default="1,8,32", metavar="N,...", help="requests at once")
    add("--minutes", type=float, default=9.5, help="for everything (default 9.5)")
    add("--out", type=Path, metavar="DIR", help="for figures.json, logs and the table")
    add("--commit", default="", help="of this checkout, where git does not know")
    add("--beside-commit", default="", help="of the other one, likewise")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--quick", action="store_true", help="the tiny pair in a minute, to try this command out")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    prompts = prompts_of(options.prompts)
    if options.quick:
        return Plan(
            shapes=("tiny",), batches=(1, 2), specs=("eagle-reference", "plain"),
            temperatures=(0.0, 1.0), rounds=3, tokens=24, length=256, prompts=prompts, starts=1,
            nodes=(1, 8),
        )  # fmt: skip
    return Plan(
        shapes=tuple(options.shapes.split(",")),
        batches=tuple(int(batch) for batch in options.batches.split(",")),
        specs=("eagle-reference", "plain"),
        temperatures=(0.0, 1.0),
        rounds=6,
        tokens=128,
        length=512,
        prompts=prompts,
        starts=3,
        nodes=(1, 8, 26, 61),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    options = _options(arguments)
    began = time.monotonic()
    out = options.out or _ROOT / "runs" / "check-gpu"
    parts = tuple(options.only.split(","))
    if unknown := set(parts) - set(PARTS):
        return _refuse(f"--only: there is no part {unknown.pop()!r}; there is {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as staged:
        try:
            plan = _plan(options)
            out.mkdir(parents=True, exist_ok=True)
            sides = [Side("here", stage(_ROOT, Path(staged) / "here"))]
            sides[0].record.commit = options.commit or commit_of(_ROOT)
            if options.beside:
                sides.append(Side("beside", stage(options.beside, Path(staged) / "beside")))
                sides[1].record.commit = options.beside_commit or commit_of(options.beside)
        except (ValueError, OSError) as error:
            return _refuse(str(error))
        seconds = 60 * options.minutes - (time.monotonic() - began)
        run = Run(plan, sides, parts, options.device, out, seconds, _say)
        try:
            asyncio.run(run.all())
        except KeyboardInterrupt:
            _say("stopped; what was found so far:")
        run.write()
    lines, status = report(sides, options)
    table = "\n".join(lines)
    (out / "table.txt").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}", flush=True)
    return status


def _say(line: str) -> None:
    print(line, flush=True)


def _refuse(message: str) -> int:
    print(f"check-gpu: {message}", file=sys.stderr)
    return 2


def report(sides: Sequence[Side], options: argparse.Namespace) -> tuple[list[str], int]:
    """Return the lines that come last, the tests and the worse figures at their end."""
    here = sides[0].record
    if not here.hardware:
        return test_lines(here), 2
    told, lines, bad = [], [], False
    then, why = _recorded(options.figures)
    if len(sides) > 1:
        other = sides[1].record
        against = f"beside ({other.commit or 'commit unknown'})"
        verdicts = beside(here, other)
        told += [f"beside: {line}" for line in test_lines(other)]
    else:
        against = f"the recorded ({then.commit or 'commit unknown'})"
        why = why or incomparable(here, then)
        verdicts = against_record(here, then)
        if why:
            told.append(f"no verdict: {why}")
        elif other_versions := _versions(here, then):
            told.append(f"other versions than the recorded: {other_versions}")
        asked = {name.partition("/")[0] for name in here.figures}
        # What was not asked for this time is not gone.
        verdicts = [v for v in verdicts if v.word != "gone" or v.name.partition("/")[0] in asked]
    lines += [f"{here.hardware}, commit {here.commit or 'unknown'}"]
    lines += [*case_lines(verdicts, against), *other_lines(verdicts)]
    lines += [f"{name}: {value:g}" for name, value in here.context.items()]
    lines += [*told, *test_lines(here), *worse_lines(verdicts, against)]
    bad = any(v.word == "worse" for v in verdicts) or bool(here.tests.get("failed"))
    bad = bad or _broken(here) or (len(sides) > 1 and _broken(sides[1].record))
    if options.record:
        if here.figures:
            replace(here, tests={}).write(options.figures)
            lines.append(f"recorded in {os.path.relpath(options.figures)}")
        else:
            lines.append("nothing recorded: there are no figures")
    return lines, int(bad)


def _versions(now: Record, then: Record) -> str:
    """Return what runs in another version than it did."""
    return ", ".join(
        f"{name} {then.versions.get(name, 'none')} -> {version}"
        for name, version in now.versions.items()
        if then.versions.get(name) != version
    )


def _broken(record: Record) -> bool:
    """Return whether something is missing for another reason than that time or an option was."""
    excused = ("not prepared in time", "no time left", "`eagle bench passes` has no --batch")
    return any(not why.startswith(excused) for why in record.missing.values())


def _recorded(path: Path) -> tuple[Record, str]:
    if not path.exists():
        return Record(), f"no figures are recorded in {path.name} yet; --record writes them"
    try:
        return Record.read(path), ""
    except (ValueError, OSError) as error:
        return Record(), str(error)
