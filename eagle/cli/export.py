"""``eagle export``: a draft head as another engine reads it, with the command that serves it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from eagle.cli import console
from eagle.cli.options import Overrides, settings_of

__all__ = ["EXAMPLES", "export"]

EXAMPLES = console.examples(
    "eagle export runs/eagle3/best --to vllm exported",
    "eagle export HUB_ID --target FOLDER --to speculators exported",
)


class Engine(StrEnum):
    """Who is to read it."""

    VLLM = "vllm"
    SGLANG = "sglang"
    SPECULATORS = "speculators"
    EAGLE = "eagle"


def export(
    head: Annotated[
        str,
        typer.Argument(
            metavar="HEAD", help="Its folder, its Hub id, a shipped one's name, or `auto`."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    to: Annotated[Engine, typer.Option("--to", help="The engine.")],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MODEL", help="The target that it was trained for."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Write a draft head as another engine reads it, and print the command that serves it.

    Names and configurations change, and no number does. What an engine would ignore or take
    otherwise is refused. A head of EAGLE-3 that its files say too little of is settled with --set
    (head.layers, head.norm_before_residual, head.feed_back).
    """
    from eagle.assets import MODELS, model_folder
    from eagle.decoding import resolve_for
    from eagle.errors import SpecError
    from eagle.plugin import Exportable, MeasuredHead, default_registry
    from eagle.spec import load_spec

    spec = load_spec("eagle", [f"head.weights={head}", *settings_of(set_, target)])
    found = resolve_for(spec, default_registry()).head
    embedded = spec.target.model in MODELS and to is not Engine.EAGLE
    if embedded and isinstance(found, MeasuredHead):
        # Other engines know the embedded model by its folder alone.
        named = settings_of(set_, str(model_folder(spec.target.model)))
        spec = load_spec("eagle", [f"head.weights={found.folder}", *named])
        found = resolve_for(spec, default_registry()).head
    if not isinstance(found, Exportable):
        raise SpecError(f"a head of the kind {type(found).__name__} cannot be exported")
    command = found.export(to.value, out)
    console.err.print(f"written to {escape(str(out))}; serve it with", style="dim", soft_wrap=True)
    console.out.out(command)
