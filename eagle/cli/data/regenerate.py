"""``eagle data regenerate``: the questions of a dataset, answered by the target itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eagle.cli import console
from eagle.cli.decoding import (
    MaxNewTokens,
    Seed,
    SpecOption,
    Target,
    Temperature,
    TopP,
    load_decoder,
    sampling_params,
    warn_if_lossy,
)
from eagle.cli.files import check_files, make_folder
from eagle.cli.options import Json, Overrides

if TYPE_CHECKING:
    from eagle.train.data import Conversation, Passage, Report, Talk
    from eagle.train.spec import SourceSpec, TrainSpec

__all__ = ["EXAMPLES", "regenerate"]

EXAMPLES = console.examples(
    "eagle data regenerate sharegpt --out answers.jsonl --limit 1000",
    "eagle data regenerate my-recipe.yaml --out answers.jsonl --spec eagle --batch 64",
    "eagle data regenerate talk.jsonl --out answers.jsonl --turns first --temperature 1",
)

_EVERY = 30.0  # seconds between lines where there is no terminal to draw a bar on


class Turns(StrEnum):
    """Which questions are answered."""

    ALL = "all"
    FIRST = "first"


def regenerate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|DATA",
            help="A training config, whose target and sources are taken; or a dataset: a file, a "
            "folder, an embedded one's name or a Hub id.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="JSON lines to write, or to go on with.")
    ],
    spec: SpecOption = "plain",
    set_: Overrides = None,
    target: Target = None,
    turns: Annotated[
        Turns, typer.Option("--turns", help="Answer every question, or the first one only.")
    ] = Turns.ALL,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="Only the first N conversations.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            help="Answers made at once; short for --set runtime.max_batch=N.",
        ),
    ] = 32,
    as_json: Json = False,
) -> None:
    """Let the target answer the questions of a dataset itself.

    The file has one line for each conversation, in the format that eagle train reads, and every
    answer in it is the target's own: what a draft head will have to predict. Killed at any moment
    and run again with the same words, it goes on where it was.
    """
    params = sampling_params(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    talks, wanted = _talks(data, limit, turns)
    make_folder(out)
    check_files(out)
    settings = [*wanted, f"runtime.max_batch={batch}", *(set_ or ())]
    decoder = load_decoder(spec, settings, target)
    warn_if_lossy(decoder)
    from eagle.train.data import regenerate as run

    started = time.monotonic()
    with _bar() as progress:
        report = run(decoder, talks, out, params, progress)
    seconds = time.monotonic() - started
    if as_json:
        console.emit_json({"file": str(out), "seconds": seconds, **vars(report)})
        return
    console.out.out(
        f"{out}: {report.answers:,} answers to {len(talks):,} conversations; now {report.tokens:,} "
        f"tokens in {seconds:.0f} s ({report.tokens / seconds:,.0f} tokens/s)"
    )
    if report.capped or report.cut or report.refused:
        console.err.print(
            f"of these, {report.capped:,} answers ended at {max_new_tokens} tokens; "
            f"{report.cut:,} conversations ended early, since the decoder holds no longer ones; "
            f"{report.refused:,} the chat template refused",
            soft_wrap=True,
        )


def _talks(data: str, limit: int | None, turns: Turns) -> tuple[list[Talk], list[str]]:
    """Return what is to be answered, and the settings of the decoder that a config implies."""
    from itertools import islice

    from eagle.train.data import read_sources, talks_of
    from eagle.train.run import say
    from eagle.train.spec import load_train_spec, shipped_train_specs

    if data in shipped_train_specs() or Path(data).suffix in (".yaml", ".yml"):
        config = load_train_spec(data)
        items = read_sources(config.data.sources, config.path, say)
        limit, wanted = limit or config.data.limit, _target_of(config)
    else:
        items, wanted = read_sources([_source(data)], say=say), []
    read = 0

    def counted() -> Iterator[Conversation | Passage]:
        nonlocal read
        for item in islice(items, limit):
            read += 1
            yield item

    with console.err.status("reading the conversations ..."):
        talks = talks_of(counted(), turns.value)
    if left := read - len(talks):
        say(f"{left:,} of {read:,} conversations have no question, and are left out")
    return talks, wanted


def _source(data: str) -> SourceSpec:
    """Return a source that is given by its path or name alone.

    Raises:
        RequestError: no file has such a name.
    """
    from pydantic import ValidationError

    from eagle.errors import RequestError
    from eagle.plugin import explain_value
    from eagle.train.spec import SourceSpec

    try:
        return SourceSpec(path=data)
    except ValidationError as error:
        raise RequestError(f"CONFIG|DATA: {explain_value(error)}") from error


def _target_of(config: TrainSpec) -> list[str]:
    from eagle.assets import MODELS

    given = config.target.model_dump(mode="json", exclude_none=True)
    path = config.path(config.target.model)
    if config.target.model not in MODELS and path.exists():
        given["model"] = str(path)
    return [f"target.{key}={json.dumps(value)}" for key, value in given.items()]


@contextmanager
def _bar() -> Iterator[Callable[[Report], None]]:
    """Show on stderr how far it is, as a bar or, without a terminal, as a line now and then."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    started = shown = time.monotonic()
    with Progress(*columns, console=console.err, disable=not console.err.is_terminal) as bar:
        task = bar.add_task("answering", total=None)
        earlier: int | None = None

        def progress(report: Report) -> None:
            nonlocal shown, earlier
            now = time.monotonic()
            rate = report.tokens / max(now - started, 1e-9)
            if earlier is None:  # what earlier processes did says nothing about the time left
                earlier = report.answers
                if earlier:
                    console.err.print(f"going on behind {earlier:,} answers", highlight=False)
            bar.update(
                task,
                description=f"answering {rate:,.0f} tokens/s",
                completed=report.answers - earlier,
                total=report.total - earlier,
            )
            if bar.disable and now - shown >= _EVERY:
                shown = now
                console.err.print(
                    f"{report.answers:,} of {report.total:,} answers, {rate:,.0f} tokens/s",
                    soft_wrap=True,
                )

        yield progress
