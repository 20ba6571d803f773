"""``eagle bench ranks``: how often is a draft head right? What `size: auto` goes by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from eagle.cli import console
from eagle.cli.decoding import Target, working
from eagle.cli.options import Json, Overrides, SpecName, settings_of

if TYPE_CHECKING:
    from eagle.spec import Resolved

__all__ = ["EXAMPLES", "ranks"]

EXAMPLES = console.examples(
    "eagle bench ranks eagle --limit 16",
    "eagle bench ranks my.yaml --prompts questions.txt",
)

_SHOWN = 5  # ranks in the table


def ranks(
    spec: SpecName,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='One prompt a line, or JSONL with {"turns": [...]}; by default held-out '
            "conversations of the embedded ShareGPT.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Prompts.")] = 16,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer, in tokens.")
    ] = 128,
    set_: Overrides = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Measure how often a draft head's candidates are right, and keep it beside its weights.

    The target answers prompts at temperature 0, and the head is asked for the rank of every token
    that it said. A tree of size auto goes by these figures. Do not take prompts that you will
    judge the tree by.
    """
    settings = settings_of(set_, target)
    with working("loading"):
        from eagle.plugin import default_registry
        from eagle.spec import load_spec, resolve

        loaded = load_spec(spec, settings)
        console.follow(loaded.target.tp_plan)
        resolve(loaded, default_registry())
        from eagle.bench.prompts import read_prompts
        from eagle.decoding import encode, resolve_for
        from eagle.target import load_target, loading
        from eagle.train.evaluation import embedded_prompts, measure_rates

    texts = None if prompts is None else read_prompts(prompts)[:limit]
    # The first time ever it fetches, with a progress bar of its own.
    loading.locate(loaded.target, loaded.folder)
    resolved = resolve_for(loaded, default_registry())
    head, folder = resolved.head, _folder(resolved)
    with working(f"loading {loaded.target.model}"):
        model = load_target(loaded.target, loaded.folder, loaded.runtime.quantize)
        head.load(model, resolved.attention)

    def say(what: str) -> None:
        console.err.print(escape(what), style="dim", soft_wrap=True)

    if prompts is None or texts is None:
        source = "sharegpt, held out"
        tokens = embedded_prompts(loaded.target, limit, say)
    else:
        source = prompts.name
        tokens = [
            encode(text, model.tokenizer, raw=False, embeddings=model.embeddings) for text in texts
        ]
    rates = measure_rates(
        head, model, resolved.features, tokens, source, max_new_tokens=max_new_tokens, say=say
    )
    path = rates.write(folder)
    if as_json:
        console.emit_json(rates.model_dump(mode="json") | {"file": str(path)})
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
    console.err.print(
        f"{rates.positions:,} positions; kept in {escape(str(path))}", style="dim", soft_wrap=True
    )


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
            "weights; copy the folder, and give the copy as head.weights"
        )
    return head.folder
