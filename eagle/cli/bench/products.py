"""``eagle bench products``: what the matrix products of a pass cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eagle.cli.bench.figures import JsonFile, MarkdownFile, command_of, show, write
from eagle.cli.decoding import Target
from eagle.cli.files import check_files
from eagle.cli.options import Overrides, Shapes, SpecName, numbers, settings_of, shape_of
from eagle.cli.progress import progress_bar

__all__ = ["products"]


def products(
    context: typer.Context,
    spec: SpecName = "eagle",
    rows: Annotated[
        str, typer.Option("--rows", metavar="N,N,...", help="Numbers of rows: nodes of a tree.")
    ] = "1,26,61",
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Rounds.")] = 20,
    shape: Shapes = None,
    set_: Overrides = None,
    target: Target = None,
    as_json: JsonFile = None,
    as_markdown: MarkdownFile = None,
) -> None:
    """Time the matrix products of one layer and the LM head, against reading their weights.

    Of a mixture, its experts are timed with rows that are sent to random ones, and held against
    reading those. Sizes are those of the spec's target or of --shape, weights random. PyTorch alone
    asks cuBLAS or oneDNN; "here" are the kernels or layouts of this library, where it has better
    ones.
    """
    from dataclasses import asdict

    wanted, wide = numbers("--rows", rows), shape_of(shape)
    check_files(as_json, as_markdown)
    from eagle.bench import (
        Setting,
        bandwidth_note,
        expert_times,
        experts_table,
        mixture_of,
        product_times,
        products_of,
        products_table,
    )
    from eagle.spec import load_spec
    from eagle.target import loading, resolve_device, resolve_dtype

    loaded = load_spec(spec, settings_of(set_, target))
    _, config = loading.describe(loading.locate(loaded.target, loaded.folder))
    if wide is not None:
        config = wide.config(config)
    device = resolve_device(loaded.target.device)
    dtype = resolve_dtype(loaded.target.dtype, device)
    text = config.get_text_config()
    mixed = mixture_of(text)
    with progress_bar() as progress:

        def timed(measure: Any, what: Any) -> Any:
            how = {"dtype": dtype, "device": device, "repeats": repeats, "progress": progress}
            return measure(what, wanted, **how)

        found = timed(product_times, products_of(text))
        routed = mixed and timed(expert_times, mixed)
    setting = Setting.here(
        f"products of {loaded.target.model if wide is None else f'the {wide.name} shape'}",
        device,
        dtype,
        "random weights, none of them in a cache",
        command_of(context),
        {"hidden_size": text.hidden_size},
    )
    tables = [products_table(found)] + ([experts_table(routed)] if routed else [])
    figures = asdict(setting) | asdict(found) | ({"experts": asdict(routed)} if routed else {})
    note = bandwidth_note(found.bandwidth)
    show(setting, note, tables)
    write(setting, note, tables, figures, as_json, as_markdown)
