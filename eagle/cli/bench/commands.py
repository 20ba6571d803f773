"""``eagle bench``: how fast is a decoder here, and what bounds it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eagle.cli import console
from eagle.cli.bench import leaderboard, products, ranks, throughput
from eagle.cli.bench.attention import attention
from eagle.cli.bench.figures import JsonFile, MarkdownFile, command_of, show, write
from eagle.cli.bench.loading import load_all, prepare_all
from eagle.cli.decoding import (
    MaxNewTokens,
    Seed,
    Target,
    Temperature,
    sampling_params,
)
from eagle.cli.files import check_files, make_folder
from eagle.cli.options import Overrides, Shapes, SpecName, numbers, shape_of
from eagle.cli.progress import progress_bar

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
app.command(epilog=leaderboard.EXAMPLES)(leaderboard.leaderboard)
app.command(epilog=throughput.EXAMPLES)(throughput.throughput)


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
    from eagle.bench import check_baselines, measure_speed, read_prompts

    baselines = tuple(baseline or ("plain",))
    check_baselines(baselines, batch)
    params = sampling_params(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    texts = read_prompts(prompts)[:limit]
    wide = shape_of(shape)
    if plots is not None:
        from eagle.bench import require_matplotlib

        require_matplotlib()
    check_files(as_json, as_markdown)
    if plots is not None:
        make_folder(plots / "cycle.png")
        check_files(plots / "cycle.png")
    settings = [*(set_ or ()), f"runtime.max_batch={batch}"]
    loaded = load_all(specs, settings, target)
    check_baselines(baselines, batch, [spec.name for spec in loaded])
    subjects = prepare_all(loaded, wide)
    with progress_bar() as progress:
        found = measure_speed(
            subjects.decoders,
            texts,
            params,
            baselines=baselines,
            repeats=repeats,
            batch=batch,
            progress=progress,
        )

    from eagle.bench import (
        Setting,
        bandwidth_note,
        cycle_table,
        speed_json,
        speed_table,
        speedup_table,
    )

    conditions = (
        f"{found.prompts} prompts of {prompts.name}, {max_new_tokens} new tokens, temperature "
        f"{temperature:g}, batch {batch}"
    )
    setting = Setting.of(subjects, conditions, command_of(context))
    tables = [speed_table(found), speedup_table(found), cycle_table(found)]
    note = bandwidth_note(found.bandwidth)
    show(setting, note, tables)
    figures = speed_json(setting, subjects.specs, found)
    write(setting, note, tables, figures, as_json, as_markdown)
    if plots is not None and not console.following():
        from eagle.bench import draw_speed

        for path in draw_speed(setting, found, plots):
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
    subjects = prepare_all(load_all([spec], [*(set_ or ())], target), wide)
    from eagle.bench import Setting, bandwidth_note, sweep_json, sweep_passes, sweep_table

    (decoder,) = subjects.decoders.values()
    with progress_bar() as progress:
        found = sweep_passes(
            decoder, counts, context=length, batch=batch, repeats=repeats, progress=progress
        )
    mode = "CUDA graphs" if found.graph else "no graphs"
    conditions = (
        f"batch {found.batch}, {found.context} tokens of context, {found.rows} cache rows read, "
        f"{mode}"
    )
    setting = Setting.of(subjects, conditions, command_of(context))
    tables = [sweep_table(found)]
    note = bandwidth_note(found.bandwidth)
    show(setting, note, tables)
    write(setting, note, tables, sweep_json(setting, found), as_json, as_markdown)
