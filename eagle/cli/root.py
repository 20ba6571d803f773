"""The command line: puts the commands together; each lives in the module of its name.

A module of this package imports nothing heavy at its top, so that ``--help`` is quick: what needs
torch is imported inside the command. To add a command, write its function in a module of its own
and add a line to `_commands`. A group of several files has a room of its own, with a face; what
rooms share are the modules beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from eagle.cli import (
    bench,
    chat,
    compiling,
    console,
    data,
    export,
    generate,
    plugins,
    serve,
    spec,
    train,
    tree,
    verify,
)

__all__ = ["app", "main"]

app = typer.Typer(
    **console.GROUP,
    epilog=console.examples(
        'eagle generate "Why is the sky blue?"', "eagle chat", "eagle spec list"
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        from eagle import __version__

        print(f"eagle-decoding {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """Make a language model faster without changing what it says (EAGLE speculative decoding)."""
    console.help_if_bare(context)


def _commands() -> None:
    app.command(epilog=generate.EXAMPLES)(generate.generate)
    app.command(epilog=chat.EXAMPLES)(chat.chat)
    app.command(epilog=serve.EXAMPLES)(serve.serve)
    app.command(epilog=tree.EXAMPLES)(tree.tree)
    app.command(epilog=verify.EXAMPLES)(verify.verify)
    app.command("compile", epilog=compiling.EXAMPLES)(compiling.compile_)
    app.command(epilog=export.EXAMPLES)(export.export)
    app.command(epilog=plugins.EXAMPLES)(plugins.plugins)
    app.add_typer(spec.app, name="spec")
    app.add_typer(train.app, name="train")
    app.add_typer(data.app, name="data")
    app.add_typer(bench.app, name="bench")


_commands()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit status: 0 on success, 2 on a user's mistake or a failing plug-in, 130 when interrupted,
    1 on a mistake of this library's.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here so that it may stand anywhere, which a parser of subcommands would not allow.
    options = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in options
    rest = [word for word in options if word != "--debug"] + given[len(options) :]
    sys.exit(console.run(typer.main.get_command(app), rest, debug=debug))
