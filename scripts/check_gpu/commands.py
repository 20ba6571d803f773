"""Figures that commands of `eagle` give: how long a start takes, and passes alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from check_gpu.figures import Record
from check_gpu.process import Ended, ProcessError, last_words, run

__all__ = ["knows_batch", "passes", "start"]

_EAGLE = (sys.executable, "-m", "eagle.cli")
_SPEC = "eagle-reference"
_LEAST = 15.0  # seconds under which nothing is started any more


async def start(
    env: Mapping[str, str], out: Path, device: str, limit: float
) -> tuple[float, float]:
    """Return the seconds from the command to its first text, and to its end.

    Raises:
        ProcessError: it failed, said nothing, or did not end in time.
    """
    words = ["generate", "Why is the sky blue?", "--max-new-tokens", "64"]
    ended = await _eagle(
        [*words, "--set", f"target.device={device}"], env, out / "start.log", limit
    )
    if ended.first is None:
        raise ProcessError("it said nothing")
    return ended.first, ended.seconds


async def knows_batch(env: Mapping[str, str], out: Path) -> bool:
    """Return whether `eagle bench passes` times several slots at once."""
    log = out / "passes-help.log"
    log.unlink(missing_ok=True)
    wide = dict(env) | {"COLUMNS": "200"}
    await run([*_EAGLE, "bench", "passes", "--help"], wide, log, 60.0)
    return "--batch" in log.read_text(encoding="utf-8", errors="replace")


async def passes(
    record: Record,
    env: Mapping[str, str],
    out: Path,
    device: str,
    shape: str,
    batch: int,
    nodes: Sequence[int],
    limit: float,
) -> None:
    """Add what verifications of several sizes take, as three samples: the quartiles.

    Raises:
        ProcessError: the command failed or did not end in time.
    """
    file = out / "passes.json"
    file.unlink(missing_ok=True)
    words = ["bench", "passes", _SPEC, "--nodes", ",".join(map(str, nodes)), "--json", str(file)]
    words += ["--shape", shape] if shape != "135m" else []
    words += ["--batch", str(batch)] if batch > 1 else []
    words += ["--set", f"target.device={device}"]
    await _eagle(words, env, out / f"passes-{shape}-b{batch}.log", limit)
    found = json.loads(file.read_text(encoding="utf-8"))
    for each in found["passes"]:
        name = f"{shape}/passes/b{each.get('batch', batch)}/n{each['nodes']}"
        for part, kind in (("verify", "pass_ms"), ("readout", "head_ms")):
            if isinstance(each.get(part), dict):
                record.add(f"{name}/{kind}", *(each[part][q] for q in ("low", "median", "high")))
    record.context[f"{shape} read bandwidth, GB/s"] = round(found["bandwidth"] / 1e9, 1)


async def _eagle(words: list[str], env: Mapping[str, str], log: Path, limit: float) -> Ended:
    if limit < _LEAST:
        raise ProcessError("no time left")
    ended = await run([*_EAGLE, *words], env, log, limit)
    if ended.code is None:
        raise ProcessError(f"took more than {limit:.0f} s")
    if ended.code:
        raise ProcessError(last_words(log) or f"exit status {ended.code}")
    return ended
