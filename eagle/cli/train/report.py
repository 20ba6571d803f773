"""``eagle train report``: the curves of training runs in one picture."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eagle.cli import console

if TYPE_CHECKING:
    from eagle.train.evaluation import Run

__all__ = ["EXAMPLES", "report"]

EXAMPLES = console.examples(
    "eagle train report runs/eagle",
    "eagle train report runs/one runs/two --against tokens --out compared.png",
    "eagle train report runs/* --prompts held-out",
)


class Against(StrEnum):
    """What curves are drawn against."""

    STEPS = "steps"
    TOKENS = "tokens"
    MINUTES = "minutes"


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folders of eagle train.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The picture: PNG, PDF or SVG.")
    ] = Path("report.png"),
    against: Annotated[
        Against, typer.Option("--against", help="What the curves are drawn against.")
    ] = Against.STEPS,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="NAME",
            help="Only the figures on this set of prompts; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw loss, accuracy, tau and n-alpha of one run, or of several to compare them.

    It reads nothing but each run's log.jsonl, also while the run is going on.
    """
    from eagle.train.evaluation import draw, read_run, require_matplotlib, run_names

    require_matplotlib()
    names = run_names(runs)
    found = [read_run(folder, name) for folder, name in zip(runs, names, strict=True)]
    if prompts:
        found = [run.only(prompts) for run in found]
    draw(found, out, against.value)
    for run in found:
        console.out.out(_summary(run))
    console.out.out(str(out))


def _summary(run: Run) -> str:
    """Return the last figures of a run in a line."""
    loss, accuracy = run.train["loss"], run.train["accuracy"]
    parts = [
        f"step {loss.steps[-1]:,}",
        f"loss {loss.values[-1]:.3f}",
        f"accuracy {accuracy.values[-1]:.3f}",
    ]
    for tree, by_set in run.tau.items():
        for prompts, curve in by_set.items():
            if len(curve.values) and not math.isnan(curve.values[-1]):
                parts.append(f"tau {curve.values[-1]:.2f} ({tree}, {prompts})")
    return f"{run.name}: {', '.join(parts)}"
