"""One command as a process with an end: asked to stop first, then stopped; knows no training."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from check_gpu.process import kill

__all__ = ["run"]

_SAVING = 20.0  # seconds that a process has, once asked to stop, to write what it has
_PR_SET_PDEATHSIG = 1


async def run(
    command: Sequence[str], env: Mapping[str, str], log: Path, out: Path, limit: float
) -> int | None:
    """Run a command to its end, or interrupt it at its limit.

    Args:
        command: what to start.
        env: its environment.
        log: where its stderr goes, behind what is there.
        out: where its stdout goes.
        limit: seconds after which it is interrupted, as by a keyboard; then it has some more.

    Returns:
        Its exit status; None where its time was up.
    """
    with log.open("ab") as errors, out.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_begin,
        )
    try:
        try:
            async with asyncio.timeout(max(limit, 0)):
                return await process.wait()
        except TimeoutError:
            await _interrupt(process)
            return None
    except asyncio.CancelledError:
        await _interrupt(process)
        raise
    finally:
        await kill(process)


async def _interrupt(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_SAVING):
            await process.wait()


def _begin() -> None:
    """Have a process listen to interrupts, and end with the one that started it.

    What is started in the background inherits that they are ignored. And a series that was killed
    and begun again would have two processes in one run's folder.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
