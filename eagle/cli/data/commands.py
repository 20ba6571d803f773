"""``eagle data``: training text, made and looked at before any GPU hour is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from eagle.cli import console
from eagle.cli.data import regenerate
from eagle.cli.files import check_files, make_folder
from eagle.cli.options import ConfigOverrides

if TYPE_CHECKING:
    from eagle.train.data import Corpus

app = typer.Typer(
    **console.GROUP,
    help="Make and look at training text.",
    epilog=console.examples(
        "eagle data prepare eagle-smollm2 --out text.npz",
        "eagle data inspect tiny",
        "eagle data regenerate sharegpt --out answers.jsonl",
    ),
)
app.command(epilog=regenerate.EXAMPLES)(regenerate.regenerate)

Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A training config, or a shipped recipe's name.")
]


@app.callback()
def _root(context: typer.Context) -> None:
    console.help_if_bare(context)


@app.command(epilog=console.examples("eagle data prepare eagle-smollm2 --out text.npz"))
def prepare(
    config: Config,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")],
    set_: ConfigOverrides = None,
) -> None:
    """Tokenise the conversations of a training config into one file.

    It can be carried to another machine and used with --set data.packed=FILE: about one byte for
    each token. No weight is loaded. An earlier such file is replaced, any other is left alone.
    """
    from eagle.train.data import make_corpus
    from eagle.train.run import say
    from eagle.train.spec import load_train_spec

    spec = load_train_spec(config, set_ or ())
    _check_out(out)
    corpus = make_corpus(spec, say)
    corpus.save(out)
    console.out.out(f"{out}: {out.stat().st_size / 1e6:.1f} MB, digest {corpus.digest}")


def _check_out(out: Path) -> None:
    """Refuse, before any text is read, a file that could not be written or is somebody's own.

    Raises:
        RequestError: it is one.
    """
    from eagle.errors import RequestError
    from eagle.train.data import is_packed

    if out.is_dir():
        raise RequestError(f"--out {out} is a folder; give the file to write")
    if out.is_file() and out.stat().st_size and not is_packed(out):
        raise RequestError(
            f"--out {out} is there and is no packed text, so it is not replaced; give another file"
        )
    make_folder(out)
    check_files(out)


@app.command(epilog=console.examples("eagle data inspect tiny --sample 2"))
def inspect(
    config: Config,
    set_: ConfigOverrides = None,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", help="Which conversation to show, from 0.")
    ] = 0,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="How many of its tokens.")
    ] = 400,
) -> None:
    """Show counts, lengths, what has no loss, and a sample whose tokens with a loss are green."""
    from eagle.errors import DataError
    from eagle.target import loading
    from eagle.train.data import load_corpus, make_corpus
    from eagle.train.run import say
    from eagle.train.spec import load_train_spec

    spec = load_train_spec(config, set_ or ())
    corpus = load_corpus(spec, Path(), say) if spec.data.packed else make_corpus(spec, say)
    if not 0 <= sample < len(corpus.ends):
        raise typer.BadParameter(
            f"there are {len(corpus.ends)} conversations, counted from 0", param_hint="--sample"
        )
    for line in _summary(corpus, spec.data.heldout, spec.data.seed):
        console.out.out(line)
    tokenizer = loading.load_tokenizer(loading.locate(spec.target, spec.document.folder))
    if tokenizer is None:
        raise DataError("the target has no tokenizer, so no sample can be shown")
    ids, answers = corpus.text(sample)
    text = Text()
    for token, answered in list(zip(ids.tolist(), answers.tolist(), strict=True))[:tokens]:
        said = console.harmless(tokenizer.decode([token]))
        text.append(said, style="green" if answered else "dim")
    console.out.print(text)


def _summary(corpus: Corpus, heldout: float, seed: int) -> list[str]:
    import numpy as np

    from eagle.train.data import lost

    lengths = corpus.ends - corpus.starts
    quartiles = ", ".join(f"{value:.0f}" for value in np.percentile(lengths, (5, 25, 50, 75, 95)))
    _, held = corpus.split(heldout, seed)
    return [
        f"conversations        {len(lengths):,} ({len(held):,} held out)",
        f"tokens               {len(corpus.tokens):,}",
        f"with a loss          {corpus.answers.mean():.1%}",
        f"length               {quartiles} (5, 25, 50, 75, 95 %), at most {lengths.max():,}",
        f"digest               {corpus.digest}",
        *(f"                     {line}" for line in lost(corpus.info.get("conversations", {}))),
    ]
