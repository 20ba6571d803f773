"""``eagle bench throughput``: what a decoder serves, and what its users wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eagle.cli import console
from eagle.cli.bench.figures import command_of, out_folder, show, write
from eagle.cli.bench.loading import load_all, prepare_all
from eagle.cli.decoding import MaxNewTokens, OwnSeed, Target, Temperature, sampling_params
from eagle.cli.options import Overrides, Shapes, decimals, numbers, shape_of
from eagle.cli.progress import progress_bar

__all__ = ["EXAMPLES", "throughput"]

EXAMPLES = console.examples(
    "eagle bench throughput eagle --prompts mt_bench.jsonl --batch 1,4,8",
    "eagle bench throughput eagle chain --prompts mt_bench.jsonl --rate 0.5,1,2 --out figures",
)


def throughput(
    context: typer.Context,
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC...", help="Shipped specs' names, or YAML files.")
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", metavar="FILE", help='One prompt a line, or JSONL with {"turns": [...]}.'
        ),
    ],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Only the first N prompts.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option("--batch", metavar="N,N,...", help="Requests decoded at once, at most."),
    ] = "1,4,8",
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            metavar="R,R,...",
            help="Requests a second that come at random times (Poisson), beside the queues; they "
            "are decoded with the largest batch.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: OwnSeed = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Rounds under each load.")
    ] = 3,
    shape: Shapes = None,
    set_: Overrides = None,
    target: Target = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Write throughput.json, .md and .png there.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve prompts as an engine does, by specs and by plain decoding in turns, and time it.

    With --batch all prompts are queued at once; with --rate they come one by one. Ratios are of
    rounds, one right after another. Nothing is timed before it was warmed up. Without --seed no
    request is given one, as servers are mostly used; with it, all rounds draw the same.
    """
    from eagle.bench import Load, read_prompts
    from eagle.errors import RequestError

    params = sampling_params(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    slots = numbers("--batch", batch)
    loads = [Load(number) for number in slots]
    loads += [Load(max(slots), each) for each in decimals("--rate", rate)]
    if any(load.rate == 0 for load in loads):
        raise RequestError("--rate: nothing ever comes at a rate of 0")
    texts = read_prompts(prompts)[:limit]
    wide = shape_of(shape)
    folder = out_folder(out, "throughput.json", "throughput.md", "throughput.png")
    subjects = prepare_all(load_all(specs, [*(set_ or ())], target), wide)
    from eagle.bench import (
        Setting,
        draw_throughput,
        latency_table,
        measure_throughput,
        throughput_json,
        throughput_note,
        throughput_table,
    )

    with progress_bar() as progress:
        cells = measure_throughput(
            subjects.decoders, texts, params, loads, rounds=rounds, progress=progress
        )
    conditions = (
        f"{len(texts)} prompts of {prompts.name}, {max_new_tokens} new tokens, temperature "
        f"{temperature:g}"
    )
    setting = Setting.of(subjects, conditions, command_of(context))
    tables = [throughput_table(cells), latency_table(cells)]
    note = throughput_note(cells)
    show(setting, note, tables)
    if folder is None or console.following():
        return
    figures = throughput_json(setting, subjects.specs, cells)
    write(setting, note, tables, figures, folder / "throughput.json", folder / "throughput.md")
    draw_throughput(setting, cells, folder / "throughput.png")
    console.err.print(f"wrote {folder}/throughput.*", style="dim", soft_wrap=True, markup=False)
