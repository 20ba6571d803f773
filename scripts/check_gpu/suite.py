"""The tests that need or use a CUDA device: which they are, and what became of each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from check_gpu.process import last_words, run
from check_gpu.told import FILE

__all__ = ["outcomes", "run_suite", "suite"]

_USES_CUDA = re.compile(
    r"cuda\.is_available\(\)|from tests\.interpreted|from tests\.exact\.tiny|mark\.gpu"
)
_LEAST = 4  # tests at once, where pytest-xdist is there and cores are
_BESIDE, _ALONE = 0.6, 0.9  # of the cores: beside decoders that are compiled, and by themselves
_ORDER = ("gpu", "kernels", "plugins", "plugin", "runtime")
"""Folders of tests, those first that need a device most; proofs take longest and come last."""


def suite(tests: Path) -> list[str]:
    """Return the files whose tests run on a CUDA device where there is one, `tests/gpu` first."""

    def place(path: Path) -> tuple[bool, int, Path]:
        room = path.relative_to(tests).parts[0]
        return room == "exact", _ORDER.index(room) if room in _ORDER else len(_ORDER), path

    files = sorted(tests.rglob("test_*.py"), key=place)
    return [
        path.relative_to(tests.parent).as_posix()
        for path in files
        if "gpu" in path.relative_to(tests).parts or _USES_CUDA.search(path.read_text("utf-8"))
    ]


async def run_suite(
    folder: Path,
    env: Mapping[str, str],
    out: Path,
    limit: float,
    device: str,
    late: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the suite of a staged checkout; see `outcomes` for what is returned.

    On a CUDA device the tests that name the CPU are left to machines that have nothing else.

    Args:
        folder: of the checkout.
        env: for pytest.
        out: folder for what it says.
        limit: in seconds.
        device: ``cuda`` or ``cpu``.
        late: those that there was no time for before; they are run with nothing beside them, and
            what came of the others counts too.

    Raises:
        RuntimeError: pytest itself failed, before any test.
    """
    told, log = out / "tests.told", out / ("tests-late.log" if late else "tests.log")
    for file in (log,) if late else (told, log):
        file.unlink(missing_ok=True)
    words = ["-m", "pytest", "-p", "check_gpu.told", "-p", "no:cacheprovider", "-q", "--tb=short"]
    found = {name: importlib.util.find_spec(name) for name in ("pytest_timeout", "xdist")}
    if found["pytest_timeout"]:
        words += ["-p", "pytest_timeout"]
    cores = os.cpu_count() or 1
    if found["xdist"] and cores >= 2 * _LEAST:
        count = max(_LEAST, int(cores * (_ALONE if late else _BESIDE)))
        words += ["-p", "xdist.plugin", "-n", str(count)]
    if device == "cuda":
        words += ["-k", "not cpu"]
    own = dict(env) | {
        FILE: str(told),
        # Plug-ins that happen to be there could warn, and a warning is an error in these tests.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), env["PYTHONPATH"])),
    }
    own.pop("PYTHONSAFEPATH", None)
    asked = late or suite(folder / "tests")
    ended = await run([sys.executable, *words, *asked], own, log, limit, cwd=folder)
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    result = outcomes(lines, complete=ended.code is not None)
    # 0 and 1: tests ran, and some failed; 5: none was selected.
    if ended.code not in (None, 0, 1, 5) and not result["failed"]:
        raise RuntimeError(f"pytest ended with status {ended.code}: {last_words(log)}")
    return result


def outcomes(lines: Iterable[str], *, complete: bool) -> dict[str, Any]:
    """Return how many tests passed and were skipped, and the others' names, with what went wrong.

    Args:
        lines: what `check_gpu.told` noted. Where several processes share the tests, each notes
            the list of them, and an outcome may be noted twice.
        complete: whether pytest came to its end; else tests without an outcome are named as not
            run in time.
    """
    known: dict[str, None] = {}
    outcome: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue  # a process was killed while it wrote
        if "items" in told:
            known.update(dict.fromkeys(told["items"]))
        elif outcome.get(told["test"]) != "failed":
            outcome[told["test"]] = told["outcome"]
            reasons[told["test"]] = told.get("why", "")
    by = {
        word: [n for n, o in outcome.items() if o == word]
        for word in ("passed", "failed", "skipped")
    }
    by["failed"] = [f"{name}: {reasons[name]}".removesuffix(": ") for name in by["failed"]]
    late = [] if complete else [name for name in known if name not in outcome]
    return {
        "passed": len(by["passed"]),
        "skipped": len(by["skipped"]),
        "failed": by["failed"],
        "not run in time": late,
    }
