"""The command line's face: it imports nothing, so that an interrupt finds it soon.

Its commands are put together in `eagle.cli.root`, which takes a tenth of a second to import.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from eagle.cli.root import app, main

__all__ = ["app", "main", "program"]

_INTERRUPTED = 130


def __getattr__(name: str) -> Any:
    """Return what puts the commands together, when it is first used."""
    if name not in ("app", "main"):
        raise AttributeError(f"module 'eagle.cli' has no attribute {name!r}")
    from eagle.cli import root

    return getattr(root, name)


def program() -> None:
    """Be the program ``eagle``: run `main`, and end the process without taking it apart.

    To free a million objects one by one, those of PyTorch and transformers, takes most of a second.
    Whoever calls `main` from Python goes on living, so nothing of that is done there.

    Interrupted, the process ends without a word: at once while there is nothing to tidy up, which
    is as long as modules are imported and once the command has ended; what it said by then is kept.
    """
    ended: list[int] = []
    try:
        import signal

        listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler

        def interrupted_by(handler: Any) -> None:
            if listens:  # a shell has what it starts in the background ignore interrupts
                signal.signal(signal.SIGINT, handler)

        interrupted_by(_leave)
        from eagle.cli import console, root

        atexit.register(console.end, ended)  # the first that registers is called last
        interrupted_by(console.interrupt)
        try:
            root.main()
        except SystemExit as exit_:
            interrupted_by(lambda *_: console.end([_INTERRUPTED]))
            ended.append(exit_.code if isinstance(exit_.code, int) else console.OWN_ERROR)
            raise
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _leave(*_: object) -> None:
    os._exit(_INTERRUPTED)
