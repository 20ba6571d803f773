"""``eagle bench``: how fast is a decoder here, and what bounds it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from eagle.cli import console
from eagle.cli.bench import products, ranks
from eagle.cli.bench.attention import attention
from eagle.cli.bench.figures import JsonFile, MarkdownFile, check_files, command_of, show, write
from eagle.cli.decoding import (
    MaxNewTokens,
    Seed,
    Target,
    Temperature,
    sampling_params,
    warn_if_lossy,
    working,
)
from eagle.cli.options import Overrides, Shapes, SpecName, numbers, settings_of, shape_of
from eagle.cli.verify.command import progress_bar

if TYPE_CHECKING:
    from eagle.bench.shapes import Shape
    from eagle.bench.subjects import Subjects
    from eagle.spec import DecoderSpec

app = typer.Typer(
    **console.GROUP,
    help="Measure how fast decoders are, and what bounds them.",
    epilog=console.examples(
        "eagle bench speed eagle --prompts mt_bench.jsonl --limit 10",
        "eagle bench passes eagle --nodes 1,8,26",
    ),
)


@app.callback()
def _root(context: typer.Context) -> None:
    console.help_if_bare(context)


app.command(
    epilog=console.examples(
        "eagle bench attention --context 1024 --rows 4096",
        "eagle bench attention --batch 8 --heads 64 --kv-heads 8 --context 16384 --rows 16448",
    )
)(attention)
app.command(
    epilog=console.examples(
        "eagle bench products --rows 1,26,61", "eagle bench products --shape llama2-7b"
    )
)(products.products)
app.command(epilog=ranks.EXAMPLES)(ranks.ranks)


@app.command(
    epilog=console.examples(
        "eagle bench speed eagle --prompts mt_bench.jsonl --baseline plain --baseline hf",
        "eagle bench speed eagle chain --prompts mt_bench.jsonl --limit 10 --plots plots",
        "eagle bench speed eagle --prompts mt_bench.jsonl --shape llama2-7b --json figures.json",
    )
)
def speed(
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
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="NAME",
            help="plain (the same runtime without drafting, the default), hf (transformers "
            "generate) or hf-assisted-ngram (its prompt lookup); may be repeated.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Only the first N prompts.", show_default=False
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    shape: Shapes = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Rounds over the prompts.")
    ] = 1,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Prompts answered at once.")
    ] = 1,
    set_: Overrides = None,
    target: Target = None,
    as_json: JsonFile = None,
    as_markdown: MarkdownFile = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots", metavar="FOLDER", help="Draw PNG pictures there.", show_default=False
        ),
    ] = None,
) -> None:
    """Time specs and baselines side by side, and show where a cycle's milliseconds go.

    All take turns on every prompt, after a warm-up. Speed-ups are medians of the prompts' ratios
    with their interquartile range. The floor is the time to read the weights of one verification
    at the bandwidth measured in the same run; share is how much of a verification that is.
    """
    from eagle.bench.prompts import read_prompts
    from eagle.bench.speed import check_baselines
    from eagle.bench.speed import speed as run

    baselines = tuple(baseline or ("plain",))
    check_baselines(baselines, batch)
    params = sampling_params(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    texts = read_prompts(prompts)[:limit]
    wide = shape_of(shape)
    if plots is not None:
        from eagle.bench.plots import require_matplotlib

        require_matplotlib()
        check_files(plots / "cycle.png" if plots.exists() else None)
    check_files(as_json, as_markdown)
    settings = [*(set_ or ()), f"runtime.max_batch={batch}"]
    loaded = _load(specs, settings, target)
    check_baselines(baselines, batch, [spec.name for spec in loaded])
    subjects = _prepare(loaded, wide)
    with progress_bar() as progress:
        found = run(
            subjects.decoders,
            texts,
            params,
            baselines=baselines,
            repeats=repeats,
            batch=batch,
            progress=progress,
        )

    from eagle.bench.report import Setting, cycle_table, speed_json, speed_table, speedup_table

    conditions = (
        f"{found.prompts} prompts of {prompts.name}, {max_new_tokens} new tokens, temperature "
        f"{temperature:g}, batch {batch}"
    )
    setting = Setting.of(subjects, conditions, command_of(context))
    tables = [speed_table(found), speedup_table(found), cycle_table(found)]
    show(setting, found.bandwidth, tables)
    figures = speed_json(setting, subjects.specs, found)
    write(setting, found.bandwidth, tables, figures, as_json, as_markdown)
    if plots is not None:
        from eagle.bench.plots import draw

        for path in draw(setting, found, plots):
            console.err.print(f"wrote {path}", style="dim", soft_wrap=True, markup=False)


@app.command(
    epilog=console.examples(
        "eagle bench passes eagle", "eagle bench passes eagle --shape llama2-7b --context 1024"
    )
)
def passes(
    context: typer.Context,
    spec: SpecName = "eagle",
    nodes: Annotated[
        str, typer.Option("--nodes", metavar="N,N,...", help="Numbers of tree nodes.")
    ] = "1,8,26,61",
    length: Annotated[
        int, typer.Option("--context", metavar="N", help="Tokens before the tree.")
    ] = 512,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Texts at once.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Rounds.")] = 20,
    shape: Shapes = None,
    set_: Overrides = None,
    target: Target = None,
    as_json: JsonFile = None,
    as_markdown: MarkdownFile = None,
) -> None:
    """Time one verification for trees of several sizes, against the time to read what it needs.

    That is the weights, and the keys and values of all texts.

    It is the pass that the spec's cycles run, through the same runtime and attention, with the LM
    head; medians and interquartile ranges.
    """
    counts = numbers("--nodes", nodes)
    wide = shape_of(shape)
    check_files(as_json, as_markdown)
    subjects = _prepare(_load([spec], [*(set_ or ())], target), wide)
    from eagle.bench.report import Setting, sweep_json, sweep_table
    from eagle.bench.sweep import sweep

    (decoder,) = subjects.decoders.values()
    with progress_bar() as progress:
        found = sweep(
            decoder, counts, context=length, batch=batch, repeats=repeats, progress=progress
        )
    mode = "CUDA graphs" if found.graph else "no graphs"
    conditions = (
        f"batch {found.batch}, {found.context} tokens of context, {found.rows} cache rows read, "
        f"{mode}"
    )
    setting = Setting.of(subjects, conditions, command_of(context))
    tables = [sweep_table(found)]
    show(setting, found.bandwidth, tables)
    write(setting, found.bandwidth, tables, sweep_json(setting, found), as_json, as_markdown)


def _load(specs: Sequence[str], settings: Sequence[str], target: str | None) -> list[DecoderSpec]:
    """Read what is measured; nothing heavy is loaded yet."""
    with working("loading"):
        from eagle.spec import load_spec

        given = settings_of(settings, target)
        loaded = [load_spec(spec, given) for spec in specs]
        for one in loaded:
            console.follow(one.target.tp_plan)
        return loaded


def _prepare(specs: Sequence[DecoderSpec], shape: Shape | None) -> Subjects:
    """Load what is measured, telling on stderr what takes the time."""
    with working("loading"):
        from eagle.bench.subjects import prepare

    with working("loading") as status:

        def progress(what: str) -> None:
            if status is not None:
                status.update(f"{escape(what)} ...")

        subjects = prepare(specs, shape, progress)
    for decoder in subjects.decoders.values():
        warn_if_lossy(decoder)
    return subjects
