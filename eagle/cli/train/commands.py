"""``eagle train``: a draft head from conversations and a frozen target; ``eagle train report``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from eagle.cli import console
from eagle.cli.options import ConfigOverrides, Json
from eagle.cli.train import report

__all__ = ["app"]

_TRAIN = "run"


class _Group(TyperGroup):
    """A group that trains where no command of its own is named: ``eagle train CONFIG``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command that trains in front of what is meant for it."""
        if not args or args[0] not in self.commands:
            args = [_TRAIN, *args]
        return super().parse_args(ctx, args)


class _Train(TyperCommand):
    """The command that trains, which goes by the name of its group."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Make a context that stands where the group's does."""
        return super().make_context(parent.info_name, args, parent=parent.parent, **extra)


app = typer.Typer(**console.GROUP, cls=_Group, help="Train a draft head for a target.")
app.command("report", epilog=report.EXAMPLES)(report.report)


@app.command(
    _TRAIN,
    cls=_Train,
    hidden=True,
    epilog=console.examples(
        "eagle train tiny",
        "eagle train eagle-smollm2 --set data.packed=text.npz --set max_seconds=480",
        "eagle train my-recipe.yaml --resume",
        "accelerate launch --num_processes 2 -m eagle.cli train eagle-smollm2 --set batch=8",
        "eagle train report runs/one runs/two --out report.png",
    ),
)
def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file, a shipped recipe's name, or `schema` to print the JSON Schema.",
        ),
    ],
    set_: ConfigOverrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the output folder's checkpoint, if it has one."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a draft head for a target; eagle train report draws the curves.

    The output folder holds head/ (the last head), best/ (the best by tau on held-out prompts),
    checkpoint.pt (what --resume needs), log.jsonl and config.yaml. To use a head:
    eagle generate "..." --set head.weights=FOLDER/best
    """
    if config == "schema":
        from eagle.train.spec import TrainSpec

        console.emit_json(TrainSpec.model_json_schema())
        return
    from eagle.train.run import train as run
    from eagle.train.spec import load_train_spec

    outcome = run(load_train_spec(config, set_ or ()), resume=resume)
    if not outcome.main:
        return
    if as_json:
        console.emit_json(
            {
                "head": str(outcome.head),
                "best": str(outcome.best),
                "step": outcome.step,
                "finished": outcome.finished,
                **outcome.measured.as_dict(),
            }
        )
        return
    for line in outcome.measured.lines():
        console.out.out(line)
    if not outcome.finished:
        console.err.print(f"stopped at step {outcome.step}; go on with --resume", soft_wrap=True)
    console.out.out(str(outcome.best))
