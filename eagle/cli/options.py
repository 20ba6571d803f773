"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["ConfigOverrides", "Json", "Overrides", "SpecName"]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the spec, as in tree.depth=3; may be repeated.",
        show_default=False,
    ),
]

ConfigOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the training config, its path joined by dots and its value in YAML, "
        "as in optimizer.lr=5e-4 or max_seconds=null; may be repeated.",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]

SpecName = Annotated[
    str, typer.Argument(metavar="SPEC", help="A shipped spec's name, or a YAML file.")
]
