"""``eagle spec``: the shipped decoder specs, checking one's own, and the schema of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from eagle.cli import console
from eagle.cli.collecting import without_collection
from eagle.cli.options import Json, Overrides, SpecName

if TYPE_CHECKING:
    import torch

    from eagle.plugin import BuildContext, TreeBuilder
    from eagle.spec import DecoderSpec, Resolved

app = typer.Typer(
    **console.GROUP,
    help="Show, check and describe decoder specs.",
    epilog=console.examples("eagle spec list", "eagle spec show chain", "eagle spec check my.yaml"),
)


@app.callback()
def _root(context: typer.Context) -> None:
    console.help_if_bare(context)


@app.command("list", epilog=console.examples("eagle spec list", "eagle spec list --json"))
def list_specs(as_json: Json = False) -> None:
    """List the specs that come with the package."""
    with without_collection():
        from eagle.spec import load_spec, shipped_specs

    described = {name: load_spec(name).description for name in shipped_specs()}
    if as_json:
        console.emit_json([{"name": n, "description": text} for n, text in described.items()])
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, description in described.items():
        table.add_row(escape(name), escape(description))
    console.out.print(table)


@app.command(
    epilog=console.examples(
        "eagle spec show chain > my.yaml",
        "eagle spec show eagle --set tree=chain",
        "eagle spec show eagle --set tree.size=auto --measure",
    )
)
def show(
    spec: SpecName,
    set_: Overrides = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure this machine, or measure it again, for the tree."),
    ] = False,
) -> None:
    """Print a spec as it was written or, with --set, in full with the overrides applied.

    Where the tree's size is chosen for this machine, how it was is shown on stderr.
    """
    with without_collection():
        from eagle.cli.budget import show_choice
        from eagle.errors import CheckpointError
        from eagle.plugin import BuildContext, default_registry
        from eagle.spec import dump, load_spec, resolve

        loaded = load_spec(spec, set_ or ())
        text, identity = loaded.document.text, None
        if set_:
            resolve(loaded, default_registry())  # what is printed in full should be a valid spec
            try:
                resolved = _at_hand(loaded, BuildContext(folder=loaded.folder))
            except CheckpointError:  # files that another machine has
                resolved = resolve(loaded, default_registry())
            text, identity = dump(loaded.model_dump(mode="json")), _identity(resolved)
    console.out.out(text.rstrip("\n"))
    if identity:
        console.err.print(escape(f"head: {identity}"), soft_wrap=True)
    show_choice(loaded, measure=measure)


@app.command(
    epilog=console.examples(
        "eagle spec check my.yaml", "eagle spec check my.yaml --set tree.depth=4"
    )
)
def check(spec: SpecName, set_: Overrides = None) -> None:
    """Check a spec: keys, values, strategies, and whether they go together. Loads no weights.

    What is `auto` in it is described as it would run on this machine.
    """
    with without_collection():
        from eagle.plugin import ROLES, BuildContext, default_registry
        from eagle.spec import load_spec, resolve

        loaded = load_spec(spec, set_ or ())
        resolve(loaded, default_registry())  # a mistake should show before transformers is imported
        device = _device(loaded.target.device)
        context = BuildContext(device=device, folder=loaded.folder)
        resolved = _at_hand(loaded, context)
    parts = ", ".join(f"{role.value} {resolved.strategies[role].name}" for role in ROLES)
    console.out.out(f"{spec}: valid")
    console.out.out(f"  {parts}")
    if identity := _identity(resolved):
        console.out.out(f"  head: {identity}")
    console.out.out(
        f"  {'lossless' if resolved.lossless else 'changes the output distribution'}, "
        f"{_size(resolved.tree)}, "
        f"cycle {'free of' if resolved.capturable else 'with'} host reads, "
        + (f"on {device}" if device else f"for {loaded.target.device}, which is not here")
    )


def _at_hand(spec: DecoderSpec, context: BuildContext) -> Resolved:
    """Resolve a spec, with the sizes of its target where its files are on this machine.

    So that what does not fit together shows; nothing is fetched for it.

    Raises:
        EagleError: see `eagle.spec.resolve`; or the target is here, and is none or is refused.
    """
    from dataclasses import replace

    from eagle import assets
    from eagle.errors import TargetError
    from eagle.plugin import default_registry
    from eagle.spec import resolve
    from eagle.target import loading

    asset = assets.ASSETS.get(spec.target.model)
    try:
        if asset is not None and not (assets.cache_dir() / asset.name).exists():
            return resolve(spec, default_registry(), context)
        source = loading.locate(spec.target, spec.folder)
        folder = loading.folder_of(source.path, spec.target.revision)
    # Who decodes is told; a spec may be for another machine.
    except (TargetError, OSError, ValueError, RuntimeError):
        folder = None
    if folder:
        known = loading.describe(replace(source, path=str(folder)))[0]
        context = replace(context, target=known, checkpoint=folder)
    return resolve(spec, default_registry(), context)


def _identity(resolved: Resolved) -> str | None:
    """Return what the head's files hold, where they are known."""
    from eagle.errors import CheckpointError
    from eagle.plugin import Identified

    try:
        return resolved.head.identity if isinstance(resolved.head, Identified) else None
    except CheckpointError:  # without a target, `auto` names no files
        return None


def _size(tree: TreeBuilder) -> str:
    from eagle.plugin import FittedTree

    if isinstance(tree, FittedTree):
        return "tree of the size that fits the machine (`eagle spec show` says which)"
    most = "" if tree.capturable else "at most "
    return f"tree nodes: {most}{tree.shape.nodes}, drafted levels: {most}{tree.shape.depth}"


def _device(name: str) -> torch.device | None:
    """Return the device of a spec, or None for one that only another machine has."""
    from eagle.errors import TargetError
    from eagle.target import resolve_device

    try:
        return resolve_device(name)
    except TargetError:
        return None


@app.command(epilog=console.examples("eagle spec schema > eagle-spec.schema.json"))
def schema() -> None:
    """Print the JSON Schema of specs, with the settings of every installed strategy.

    An editor with YAML support completes and checks a spec with it, if its first line is
    # yaml-language-server: $schema=eagle-spec.schema.json
    """
    from eagle.plugin import default_registry
    from eagle.spec import json_schema

    console.emit_json(json_schema(default_registry()))
