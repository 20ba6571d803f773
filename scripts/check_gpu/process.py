"""Processes with a time limit, run or talked to; knows nothing of what they do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "ProcessError", "Worker", "kill", "last_words", "run"]


class ProcessError(Exception):
    """A process failed, or did not answer in time; the message says which."""


@dataclass(frozen=True)
class Ended:
    """A process that is over.

    Attributes:
        code: its exit status; None where its time was up.
        first: seconds until it first wrote to stdout; None if it never did.
        seconds: until it ended.
    """

    code: int | None
    first: float | None
    seconds: float


async def run(
    command: Sequence[str], env: Mapping[str, str], log: Path, limit: float, cwd: Path | None = None
) -> Ended:
    """Run a command to its end or its limit, everything that it writes going to a log."""
    started = time.monotonic()
    first: float | None = None
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(max(limit, 0)):
                while piece := await process.stdout.read(65536):
                    first = first or time.monotonic() - started
                    file.write(piece)
                    file.flush()
                code: int | None = await process.wait()
        except TimeoutError:
            code = None
        finally:
            await kill(process)
    return Ended(code, first, time.monotonic() - started)


class Worker:
    """A process that answers one line of JSON with one line of JSON.

    Args:
        command: what to start.
        env: its environment.
        log: where its stderr goes.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._command, self._env, self.log = command, env, log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, limit: float) -> Any:
        """Start it, and return what it says when it is ready.

        Raises:
            ProcessError: it ended or took longer.
        """
        with self.log.open("ab") as file:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        return await self._answer(limit)

    async def ask(self, question: Any, limit: float) -> Any:
        """Return its answer to a question.

        Raises:
            ProcessError: it cannot answer (it may answer others), it ended, or it took longer and
                was stopped.
        """
        if self._process is None or self._process.stdin is None:
            raise ProcessError("stopped before")
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            await self._process.stdin.drain()
        except OSError:
            await self.stop()
            raise ProcessError(last_words(self.log) or "ended without a word") from None
        return await self._answer(limit)

    async def stop(self) -> None:
        """End it, and whatever it started."""
        process, self._process = self._process, None
        if process is not None:
            await kill(process)

    async def _answer(self, limit: float) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(max(limit, 0)):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.stop()
            raise ProcessError(f"took more than {limit:.0f} s") from None
        if not line:
            await self.stop()
            raise ProcessError(last_words(self.log) or "ended without a word")
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessError(answer["error"])
        return answer["ok"]


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process and all of its session: compilers outlive whoever started them."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def last_words(log: Path) -> str:
    """Return the last line that a process wrote to its log, shortened."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
