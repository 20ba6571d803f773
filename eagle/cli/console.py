"""How commands speak: results to stdout, all else to stderr, mistakes in one line each."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from eagle.errors import EagleError, PartedError, RequestError, SpecError, clipped, reason

__all__ = [
    "GROUP",
    "emit_json",
    "end",
    "err",
    "examples",
    "fail",
    "follow",
    "following",
    "harmless",
    "help_if_bare",
    "interrupt",
    "out",
    "run",
]

if os.environ.get("COLUMNS") == "0":  # set where there is no terminal; Rich would print nothing
    del os.environ["COLUMNS"]

out = Console(highlight=False, emoji=False)
"""For results."""

err = Console(stderr=True, highlight=False, emoji=False)
"""For everything else: progress, notes, errors."""

GROUP: dict[str, Any] = {
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "invoke_without_command": True,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "add_completion": False,
}
"""Settings of the program and of every group of commands."""

_LONGEST = 1500  # characters of a line: what was given, and is repeated, may be longer

# Codes that a terminal obeys: files, and servers, that an error repeats may be anybody's.
_CODES = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")

# What PyTorch says, whose error on a CPU is a RuntimeError like any other.
_NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|size calculation overflowed", re.I
)

# What PyTorch says, as a TypeError, of a number of more than 64 bits; and such a number.
_NO_WORD = re.compile("Overflow when unpacking long")
_HUGE = re.compile(r"(?<![\w.])\d{19,4000}(?![\w.])")

# Where torchao is installed transformers imports it, which tells of kernels that nobody asked for.
_CHATTY = ("torchao", "torch.utils._pytree")

USER_ERROR, OWN_ERROR, INTERRUPTED = 2, 1, 130


def follow(tp_plan: str | None) -> None:
    """Say no more in this process, where another one of those that hold a target speaks for all.

    Args:
        tp_plan: of the target; None leaves everything as it is.
    """
    if tp_plan is not None and os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        out.file, err.quiet = sys.stdout, True


def following() -> bool:
    """Whether another process speaks for this one; see `follow`."""
    return err.quiet


def examples(*lines: str) -> str:
    """Return an epilog for ``--help`` that shows example commands, one per line."""
    # Typer joins lines, but keeps paragraphs apart.
    return "\n\n".join(["Examples:", *(f"  [cyan]{escape(line)}[/cyan]" for line in lines)])


def help_if_bare(context: typer.Context) -> None:
    """Show the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def emit_json(value: Any) -> None:
    """Print a value as JSON, the only thing on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def fail(message: str) -> None:
    """Print an error on stderr, one line for each of its sentences."""
    for line in message.splitlines():
        line = escape(clipped(harmless(line), _LONGEST))
        err.print(f"[bold red]error:[/] {line}", soft_wrap=True)


def harmless(text: str) -> str:
    """Return a text of anybody's with the codes written out that a terminal would obey."""
    return _CODES.sub(lambda code: f"\\x{ord(code[0]):02x}", text)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt what goes on, as Python does; a signal handler.

    While PyTorch is imported the process ends at once: its modules, and those that it imports,
    lose an interrupt or abort at one, and until it is there no command has begun anything.
    """
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if spec is None or getattr(spec, "_initializing", False):
        at = frame
        while at is not None:
            if at.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(INTERRUPTED)
            at = at.f_back
    signal.default_int_handler(number, frame)


def run(command: Any, arguments: Sequence[str], *, debug: bool = False) -> int:
    """Run a command, explain what goes wrong, and return the exit status.

    Args:
        command: the command that typer made.
        arguments: the words after the program's name.
        debug: show tracebacks.
    """
    # No text is a mistake: neither a path that is no UTF-8, nor an answer in a terminal's code.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        status = command.main(args=list(arguments), prog_name="eagle", standalone_mode=False)
        if sys.stdout is not None:  # None where it was closed before the start
            sys.stdout.flush()  # a closed pipe shows here, where it can still be dealt with
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else OWN_ERROR
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OWN_ERROR
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        with suppress(OSError):  # nobody reads what goes wrong, or there is no room for it
            if debug:
                traceback.print_exc()
            if (number := _too_large(error, arguments)) is not None:
                fail(f"{number} is too large a number")
                return USER_ERROR
            return _explain(error)
        return USER_ERROR
    return status if isinstance(status, int) else 0


def end(status: Sequence[int]) -> None:
    """End the process with the status that is known by now, if one is; memory is the system's.

    For the last of the functions that are called at exit: all threads are joined by then.
    """
    if status:
        logging.shutdown()  # registered before, so it would be called later
        for stream in (sys.stdout, sys.stderr):
            # Closed, read by nobody, or being flushed already where a signal came.
            with suppress(AttributeError, OSError, ValueError, RuntimeError):
                stream.flush()
        os._exit(status[0])


def _of_option(error: Exception) -> str | None:
    """Return what is wrong with an option's value, where pydantic found it for typer."""
    if not (hasattr(error, "param") and hasattr(error.__cause__, "errors")):
        return None
    from pydantic import ValidationError

    from eagle.plugin import explain_value

    cause, options = error.__cause__, getattr(error.param, "opts", None)
    if not isinstance(cause, ValidationError) or not options:
        return None
    return f"{options[0]}: {explain_value(cause)}"


def _too_large(error: Exception, arguments: Sequence[str]) -> str | None:
    """Return the number among the arguments that is none for the machine, if that is the error."""
    if not isinstance(error, OverflowError) and not _NO_WORD.search(str(error)):
        return None
    found = (_HUGE.search(word) for word in arguments)
    return next((each[0] for each in found if each and int(each[0]) >= 2**63), None)


def _explain(error: Exception) -> int:
    # Typer carries its own copy of click, and earlier versions use the real one: what they have
    # in common is this method.
    if hasattr(error, "format_message"):
        fail(_of_option(error) or error.format_message())
        if context := getattr(error, "ctx", None):
            err.print(f"Try '{context.command_path} --help'.", style="dim", soft_wrap=True)
        return USER_ERROR
    if following():
        # What is wrong with the command is wrong for all, and the first one says it.
        err.quiet = isinstance(error, SpecError | RequestError | PartedError)
    if isinstance(error, EagleError):
        fail(str(error))
        return USER_ERROR
    if isinstance(error, OSError):
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return USER_ERROR
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        fail(f"there is not enough memory for that: {reason(error)}")
        return USER_ERROR
    text = " ".join(f"{type(error).__name__}: {error}".split())
    fail(f"{text} (a mistake in this library; run again with --debug and report what it shows)")
    return OWN_ERROR
