"""``eagle compile``: make the target's passes quicker on this CPU, once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.markup import escape

from eagle.cli import console
from eagle.cli.decoding import Target, load_decoder, working
from eagle.cli.options import Overrides, SpecName

if TYPE_CHECKING:
    from eagle.decoding import Decoder

__all__ = ["EXAMPLES", "compile_", "suggest"]

EXAMPLES = console.examples(
    "eagle compile", "eagle compile plain --target HuggingFaceTB/SmolLM2-360M"
)

_AGAIN = 7 * 24 * 3600  # seconds until the command is mentioned again


def compile_(spec: SpecName = "eagle", set_: Overrides = None, target: Target = None) -> None:
    """Compile the target's pass for this CPU, which takes a minute or two, once.

    It is kept in the cache folder, and every later start uses it where runtime.compile is 'auto'.
    Specs with the same target, attention backend and features share it, and so do models of the
    same sizes, whatever their weights.
    """
    from eagle.errors import SpecError
    from eagle.runtime import AheadPass

    decoder = load_decoder(spec, [*(set_ or ()), "runtime.compile=false"], target)
    if decoder.target.device.type != "cpu":
        raise SpecError(
            "eagle compile is for CPUs; with a GPU, cycles are compiled by the first that needs it"
        )
    resolved = decoder.resolved
    made = AheadPass(decoder.target, resolved.attention, resolved.features.layers)
    if made.path.is_file() and made.load():
        console.err.print(f"Already compiled: {escape(str(made.path))}", soft_wrap=True)
        return
    started = time.perf_counter()
    with working("compiling the target's pass (a minute or two)"):
        made.make()
        made.load()
    console.err.print(
        f"Compiled in {time.perf_counter() - started:.0f} s: {escape(str(made.path))}",
        soft_wrap=True,
    )


def suggest(decoder: Decoder) -> None:
    """Mention the command where it would help: on a terminal, once a week at most."""
    if not console.err.is_terminal or decoder.target.device.type != "cpu":
        return
    from eagle.assets import cache_dir
    from eagle.runtime import compiler, made

    target = decoder.target
    automatic = decoder.spec.runtime.compile == "auto"
    if not automatic or made(target.config, target.dtype) or compiler() is None:
        return
    said = cache_dir() / ".compile-suggested"
    try:
        if said.exists() and time.time() - said.stat().st_mtime < _AGAIN:
            return
        said.touch()
    except OSError:
        return  # rather not at all than every time
    console.err.print(
        "[dim]`eagle compile` makes decoding about 1.5 times as fast on this CPU, once and for "
        "all; it takes a minute or two.[/]",
        soft_wrap=True,
    )
