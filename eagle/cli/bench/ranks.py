"""``eagle bench ranks``: how often is a draft head right, and what would trees make of it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from eagle.cli import console
from eagle.cli.bench.asking import Asking
from eagle.cli.decoding import Target, working
from eagle.cli.options import Json, Overrides, SpecName, settings_of

if TYPE_CHECKING:
    from eagle.plugin import RankRates
    from eagle.spec import DecoderSpec, Resolved
    from eagle.train.evaluation import Ranked, Simulation

__all__ = ["EXAMPLES", "ranks"]

EXAMPLES = console.examples(
    "eagle bench ranks eagle --limit 16",
    "eagle bench ranks my.yaml --prompts questions.txt",
    "eagle bench ranks my.yaml --prompts chat=chat.jsonl --prompts code=code.jsonl --no-keep \\",
    "    --tree '{name: chain, depth: 3}' --tree '{name: static, tree: reference-25}' --plot a.png",
    "eagle bench ranks eagle --prompts talks.jsonl --all-turns --max-prompt 8000 --plot a.png",
)

_SHOWN = 5  # ranks in the table


def ranks(
    spec: SpecName,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="[NAME=]FILE",
            help='One prompt a line, or JSONL with {"turns": [...]}; may be repeated, a file for '
            "each kind of text. By default held-out conversations of the embedded ShareGPT.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Prompts of each file.")
    ] = 16,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer, in tokens.")
    ] = 128,
    max_prompt: Annotated[
        int, typer.Option("--max-prompt", metavar="N", min=1, help="Longest prompt, in tokens.")
    ] = 1024,
    all_turns: Annotated[
        bool,
        typer.Option(
            "--all-turns",
            help="Ask all turns of a line, each behind the answers before it, up to --max-prompt.",
        ),
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            metavar="FILE",
            help="Keep the target's answers there; where they are, take them from there.",
        ),
    ] = None,
    tree: Annotated[
        list[str] | None,
        typer.Option(
            "--tree",
            metavar="YAML",
            help="A tree of fixed shape to simulate, as in a spec; may be repeated.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw tau by kind of text and along the text."),
    ] = None,
    bins: Annotated[
        int,
        typer.Option(
            "--bins", metavar="N", min=1, help="Parts of the longest text, for tau along the text."
        ),
    ] = 12,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep the rates beside the head's weights.")
    ] = True,
    set_: Overrides = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Measure how often a draft head's candidates are right, and keep it beside its weights.

    The target answers prompts at temperature 0, and the head is asked for the rank of every token
    that it said. A tree of size auto goes by these figures. Do not take prompts that you will
    judge the tree by. What any tree of fixed shape would have accepted follows from the ranks:
    --tree says it without decoding.
    """
    settings = settings_of(set_, target)
    with working("loading"):
        from eagle.plugin import default_registry
        from eagle.spec import load_spec, resolve

        loaded = load_spec(spec, settings)
        console.follow(loaded.target.tp_plan)
        resolve(loaded, default_registry())
        from eagle.decoding import resolve_for
        from eagle.target import load_target, loading
        from eagle.train.evaluation import (
            LEVELS,
            draw_simulation,
            rank_rates,
            ranked,
            require_matplotlib,
            require_ranks,
            simulate,
        )

    if plot is not None:
        require_matplotlib()
    files = _files(prompts or ())
    trees = _trees(tree or (), loaded, plot is not None)
    # The first time ever it fetches, with a progress bar of its own.
    loading.locate(loaded.target, loaded.folder)
    resolved = resolve_for(loaded, default_registry())
    head, folder = resolved.head, _folder(resolved) if keep else None
    with working(f"loading {loaded.target.model}"):
        model = load_target(loaded.target, loaded.folder, loaded.runtime.quantize)
        head.load(model, resolved.attention)

    def say(what: str) -> None:
        console.err.print(escape(what), style="dim", soft_wrap=True)

    deepest = max((len(path) for paths in trees.values() for path in paths), default=0)
    require_ranks(head)
    asking = Asking(files, limit, max_new_tokens, max_prompt, all_turns)
    found: dict[str, Ranked] = {}
    for name, one in asking.ask(loaded, model, answers, say).items():
        found[name] = ranked(
            head, model, resolved.features, one.read(), one.source,
            levels=max(LEVELS if keep else 1, deepest), say=say,
        )  # fmt: skip
    replays = [replay for one in found.values() for replay in one.replays]
    rates = rank_rates(replays, "; ".join(one.source for one in found.values()))
    simulation = simulate(found, trees, bins) if trees else None
    if simulation is not None and plot is not None:
        draw_simulation(simulation, plot)
    path = None if folder is None else rates.write(folder)
    _show(rates, simulation, path, as_json=as_json)


def _files(given: Sequence[str]) -> dict[str, Path]:
    """Return files of prompts by the names of their kinds of text.

    Raises:
        SpecError: two have one name.
    """
    from eagle.errors import SpecError

    files: dict[str, Path] = {}
    for one in given:
        name, sign, file = one.partition("=")
        path = Path(file if sign else name)
        name = name if sign else path.stem
        if name in files:
            raise SpecError(f"--prompts: two files are called {name!r}; name them, as in a=FILE")
        files[name] = path
    return files


def _trees(
    given: Sequence[str], spec: DecoderSpec, wanted: bool
) -> dict[str, frozenset[tuple[int, ...]]]:
    """Return the rank paths of trees by what they are called.

    Args:
        given: YAML of each.
        spec: that they stand in.
        wanted: whether there has to be one: the spec's own, if none is given.

    Raises:
        SpecError: one is no tree, or not of fixed shape.
    """
    import yaml
    from pydantic import ValidationError

    from eagle.errors import SpecError
    from eagle.plugin import ComponentSpec, default_registry
    from eagle.spec import resolve
    from eagle.train.evaluation import fixed_paths

    asked = list(given)
    if not asked and wanted:
        asked = [yaml.safe_dump(spec.tree.model_dump(), default_flow_style=True, width=1000)]
    found = {}
    for text in asked:
        try:
            component = ComponentSpec.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError) as error:
            raise SpecError(
                f"--tree {text!r}: should be a tree as in a spec, such as "
                "'{name: chain, depth: 3}'"
            ) from error
        other = spec.model_copy(update={"tree": component})
        title = ", ".join([component.name, *(f"{k} {v}" for k, v in component.settings.items())])
        found[title] = fixed_paths(resolve(other, default_registry()).tree, component.name)
    return found


def _show(
    rates: RankRates, simulation: Simulation | None, kept: Path | None, *, as_json: bool
) -> None:
    if as_json:
        more: dict[str, Any] = {} if kept is None else {"file": str(kept)}
        more |= {} if simulation is None else {"simulation": simulation.as_dict()}
        console.emit_json(rates.model_dump(mode="json") | more)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("level", justify="right")
    for rank in range(_SHOWN):
        table.add_column(f"rank {rank}", justify="right")
    table.add_column(f"rank {_SHOWN} and on", justify="right")
    for number, level in enumerate(rates.levels, start=1):
        shares = [*level[:_SHOWN], 1 - sum(level[:_SHOWN])]
        table.add_row(str(number), *(f"{share:.3f}" for share in shares))
    console.out.print(table)
    if simulation is not None:
        console.out.print()
        console.out.print(_simulated(simulation))
    place = "" if kept is None else f"; kept in {escape(str(kept))}"
    console.err.print(f"{rates.positions:,} positions{place}", style="dim", soft_wrap=True)


def _simulated(found: Simulation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tau of", overflow="fold")
    for name in found.places:
        table.add_column(name, justify="right")
    for title, by_set in found.tau.items():
        table.add_row(title, *(f"{by_set[name]:.2f}" for name in found.places))
    return table


def _folder(resolved: Resolved) -> Path:
    """Return where a head's figures are kept; that they cannot be should show at once.

    Raises:
        SpecError: the head has no files.
        CheckpointError: its folder is missing, or may not be written to.
    """
    import os

    from eagle.errors import CheckpointError, SpecError
    from eagle.plugin import MeasuredHead

    head = resolved.head
    if not isinstance(head, MeasuredHead):
        name = resolved.spec.head.name
        raise SpecError(f"the draft head {name!r} has no files beside which figures could be kept")
    if not os.access(head.folder, os.W_OK):
        raise CheckpointError(
            f"{head.folder} may not be written to, so figures cannot be kept beside this head's "
            "weights; give --no-keep, or copy the folder and give the copy as head.weights"
        )
    return head.folder
