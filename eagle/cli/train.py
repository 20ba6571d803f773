"""``eagle train``: a draft head from conversations and a frozen target."""

from __future__ import annotations

from typing import Annotated

import typer

from eagle.cli import console
from eagle.cli.options import Json, Overrides

EXAMPLES = console.examples(
    "eagle train tiny",
    "eagle train eagle-smollm2 --set data.packed=text.npz --set max_seconds=480",
    "eagle train my-recipe.yaml --resume",
)


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file, a shipped recipe's name, or `schema` to print the JSON Schema.",
        ),
    ],
    set_: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the output folder's checkpoint, if it has one."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a draft head for a target.

    The output folder holds head/ (the last head), best/ (the best by tau on held-out prompts),
    checkpoint.pt (what --resume needs), log.jsonl and config.yaml. To use a head:
    eagle generate "..." --set head.weights=FOLDER/best
    """
    if config == "schema":
        from eagle.train.config import TrainSpec

        console.emit_json(TrainSpec.model_json_schema())
        return
    from eagle.train.config import load_train_spec
    from eagle.train.run import train as run

    outcome = run(load_train_spec(config, set_ or ()), resume=resume)
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
