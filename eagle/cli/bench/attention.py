"""``eagle bench attention``: what one layer's tree attention costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eagle.cli.bench.figures import JsonFile, MarkdownFile, command_of, show, write
from eagle.cli.decoding import checked
from eagle.cli.files import check_files
from eagle.cli.progress import progress_bar

__all__ = ["attention"]


def _size(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="N", min=1, help=what)


def attention(
    context: typer.Context,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Attention backend, by default sdpa and auto; may be repeated. Ratios are over "
            "the first.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, _size("--batch", "Slots.")] = 1,
    heads: Annotated[int, _size("--heads", "Query heads.")] = 32,
    kv_heads: Annotated[int, _size("--kv-heads", "Key and value heads.")] = 32,
    head_dim: Annotated[int, _size("--head-dim", "Size of each head.")] = 128,
    nodes: Annotated[int, _size("--nodes", "Tree nodes of each slot.")] = 26,
    length: Annotated[int, _size("--context", "Committed rows of each slot.")] = 1024,
    rows: Annotated[int, _size("--rows", "Rows of the cache.")] = 4096,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="NAME", help="As target.dtype in a spec.")
    ] = "auto",
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="As target.device in a spec.")
    ] = "auto",
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Rounds.")] = 20,
    as_json: JsonFile = None,
    as_markdown: MarkdownFile = None,
) -> None:
    """Time one layer's tree attention, backend against backend and against the bytes to be read.

    Bytes are keys and values of committed rows and of the tree; GB/s is those over the time.
    """
    check_files(as_json, as_markdown)
    from dataclasses import asdict

    from eagle.bench import (
        AttentionShape,
        Setting,
        attention_table,
        attention_times,
        bandwidth_note,
    )
    from eagle.plugin import BuildContext, default_registry
    from eagle.spec import TargetSpec, load_spec, resolve
    from eagle.target import resolve_device, resolve_dtype

    spec = checked(TargetSpec, {"dtype": dtype, "device": device})
    where = resolve_device(spec.device)
    kind = resolve_dtype(spec.dtype, where)
    shape = AttentionShape(batch, heads, kv_heads, head_dim, nodes, length, rows)
    registry, build = default_registry(), BuildContext(None, where)
    backends = {
        name: resolve(load_spec("plain", [f"attention.name={name}"]), registry, build).attention
        for name in backend or ("sdpa", "auto")
    }
    with progress_bar() as progress:
        found = attention_times(
            backends, shape, dtype=kind, device=where, repeats=repeats, progress=progress
        )
    conditions = (
        f"batch {batch}, {heads} query heads, {kv_heads} KV heads of size {head_dim}, {nodes} "
        f"nodes, {length} tokens of context, {rows} cache rows"
    )
    setting = Setting.here(
        "tree attention of one layer", where, kind, conditions, command_of(context), vars(shape)
    )
    tables = [attention_table(found)]
    note = bandwidth_note(found.bandwidth)
    show(setting, note, tables)
    figures = asdict(setting) | asdict(found)
    write(setting, note, tables, figures, as_json, as_markdown)
