"""``eagle bench leaderboard``: who is fastest here, on which kind of text?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eagle.cli import console
from eagle.cli.bench.figures import command_of
from eagle.cli.bench.loading import prepare_all
from eagle.cli.decoding import MaxNewTokens, OwnSeed, Target, sampling_params, working
from eagle.cli.files import check_files
from eagle.cli.options import Overrides, Shapes, decimals, numbers, settings_of, shape_of
from eagle.cli.progress import progress_bar

__all__ = ["EXAMPLES", "leaderboard"]

EXAMPLES = console.examples(
    "eagle bench leaderboard --out leaderboard.md",
    "eagle bench leaderboard eagle my.yaml my-tree --batch 1,8 --temperature 0",
    "eagle bench leaderboard --prompts chat=mt_bench.jsonl --prompts maths=gsm8k.jsonl --limit 8",
)


def leaderboard(
    context: typer.Context,
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPEC...]",
            help="Shipped specs' names, YAML files, or names of draft heads, trees and rules, "
            "which take their place in the default spec; by default all that there are.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="DOMAIN=FILE",
            help="Prompts of a kind, one a line or JSONL; may be repeated. By default a few of "
            "each of seven kinds that come with the library.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Only the first N of each kind.")
    ] = 4,
    batch: Annotated[
        str,
        typer.Option("--batch", metavar="N,N,...", help="Requests decoded at once, at most."),
    ] = "1,4",
    temperature: Annotated[
        str, typer.Option("--temperature", metavar="T,T,...", help="Temperatures of the answers.")
    ] = "0,1",
    max_new_tokens: MaxNewTokens = 24,
    seed: OwnSeed = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Rounds over the prompts.")
    ] = 1,
    shape: Shapes = None,
    set_: Overrides = None,
    target: Target = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run all anew, also what was run before.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The page; pictures go beside it.")
    ] = Path("leaderboard.md"),
) -> None:
    """Run specs on prompts of several kinds, with plain decoding in turns, and write a page.

    What is finished is kept in a JSON file beside the page: a command that was interrupted goes on
    where it was, and a new spec is run alone. Whoever cannot run is named with the reason.
    """
    from eagle.bench import (
        PLAIN,
        digest_of,
        read_prompts,
        read_sections,
        require_matplotlib,
        shipped_prompts,
    )
    from eagle.errors import RequestError

    warmths = decimals("--temperature", temperature)
    for each in warmths:
        params = sampling_params(max_new_tokens=max_new_tokens, temperature=each, seed=seed)
    slots = numbers("--batch", batch)
    given = dict(_domain(each) for each in prompts or ())
    texts = {domain: read_prompts(file) for domain, file in given.items()} or shipped_prompts()
    texts = {domain: some[:limit] for domain, some in texts.items()}
    fewest = min(texts, key=lambda domain: len(texts[domain]))
    if max(slots) > len(texts[fewest]):
        raise RequestError(
            f"--batch {max(slots)}: so many requests are never decoded at once, as only "
            f"{len(texts[fewest])} of {fewest} are asked; raise --limit, give more prompts, or a "
            "smaller batch"
        )
    wide = shape_of(shape)
    require_matplotlib("a leaderboard")
    data = out.with_suffix(".json")
    check_files(out, data)
    kept = [] if fresh else read_sections(data)

    settings = [*settings_of(set_, target), f"runtime.max_batch={max(slots)}"]
    with working("loading"):
        from eagle.bench import enter, everybody, plain_spec
        from eagle.plugin import default_registry

        registry = default_registry()
        names = [name for name in specs or everybody(registry) if name != PLAIN]
        entries = enter(names, settings, registry)
    failed = {one.name: one.problem for one in entries if one.spec is None}
    able = [one.spec for one in entries if one.spec is not None]
    if not able:
        raise RequestError(f"nobody can run: {'; '.join(map(': '.join, failed.items()))}")
    subjects = prepare_all([plain_spec(able[0]), *able], wide, failed)
    from eagle.bench import Section, Setting, run_leaderboard, write_page, write_sections

    setting = Setting.of(subjects, "", command_of(context))
    section = Section(
        subject=f"{setting.label}, {setting.dtype}, {setting.hardware}",
        conditions=f"{limit} prompts of each kind, {max_new_tokens} new tokens, "
        f"{rounds} {'round' if rounds == 1 else 'rounds'}",
        inputs=digest_of(texts, max_new_tokens, rounds, seed),
        command=setting.command,
        versions=setting.packages,
    )
    section = section.within(kept)
    for name, why in failed.items():
        section.fail(name, why)
        console.err.print(f"{name}: {why}", style="yellow", soft_wrap=True, markup=False)
    with progress_bar() as progress:
        run_leaderboard(
            section,
            subjects.decoders,
            texts,
            params,
            specs=subjects.specs,
            temperatures=warmths,
            batches=slots,
            rounds=rounds,
            keep=lambda: write_sections(kept, data),
            progress=progress,
        )
    write_sections(kept, data)
    for file in write_page(kept, out):
        console.err.print(f"wrote {file}", style="dim", soft_wrap=True, markup=False)


def _domain(given: str) -> tuple[str, Path]:
    """Return what ``--prompts`` names: a kind of text, and the file with prompts of it.

    Raises:
        RequestError: it is not given like that.
    """
    from eagle.errors import RequestError

    domain, equals, file = given.partition("=")
    if not equals or not domain.isidentifier() or not file:
        raise RequestError(f"--prompts {given:.80}: must look like DOMAIN=FILE, as in chat=a.jsonl")
    return domain, Path(file)
