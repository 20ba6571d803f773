"""What ``eagle bench`` prints and writes, and the command that would do it again."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table as RichTable

from eagle.cli import console
from eagle.cli.files import check_files

if TYPE_CHECKING:
    from eagle.bench import Setting, Table

__all__ = [
    "JsonFile",
    "MarkdownFile",
    "command_of",
    "out_folder",
    "show",
    "write",
]

_GAP = 2  # characters between columns

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write all figures.", show_default=False),
]
MarkdownFile = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Write the tables.", show_default=False),
]


def out_folder(folder: Path | None, *names: str) -> Path | None:
    """Return the folder of ``--out``, made if need be, where files and pictures can be written.

    Raises:
        RequestError: they cannot, or there is nothing to draw with.
    """
    if folder is None:
        return None
    from eagle.bench import require_matplotlib
    from eagle.errors import RequestError

    require_matplotlib("--out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out {folder}: {error.strerror or error}") from error
    check_files(*(folder / name for name in names))
    return folder


def show(setting: Setting, note: str, tables: Sequence[Table]) -> None:
    """Print tables, what they were measured on above them and a note below.

    On a narrow terminal cells take several lines, elsewhere lines are as long as need be: no figure
    is cut off.
    """
    console.out.print(setting.sentence, style="bold", soft_wrap=True, markup=False)
    for table in tables:
        console.out.print()
        console.out.print(_shown(table), crop=False)
    console.out.print()
    console.out.print(note, style="dim", soft_wrap=True, markup=False)


def _shown(table: Table) -> RichTable:
    headings, *rows = table
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    if console.out.is_terminal and _width(widths) > console.out.width:
        words = [[word for cell in column for word in cell.split()] for column in columns[1:]]
        widths[1:] = [max(map(cell_len, each), default=0) for each in words]
    # Rich would cut figures off to keep to the width of a terminal.
    shown = RichTable(box=None, pad_edge=False, width=_width(widths))
    for number, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        shown.add_column(escape(heading), justify="right" if number else "left", width=width)
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _width(widths: list[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def write(
    setting: Setting,
    note: str,
    tables: Sequence[Table],
    figures: Any,
    as_json: Path | None,
    as_markdown: Path | None,
) -> None:
    """Write the files that were asked for: all figures as JSON, tables as Markdown."""
    from eagle.bench import markdown
    from eagle.host import write_text

    if console.following():
        return
    if as_markdown is not None:
        write_text(as_markdown, markdown(setting, note, tables))
    if as_json is not None:
        text = json.dumps(figures, ensure_ascii=False, indent=2)
        write_text(as_json, text + "\n")


def command_of(context: typer.Context) -> str:
    """Return the command as it could be given again: what differs from the defaults."""
    words = context.command_path.split()
    if count := os.environ.get("LOCAL_WORLD_SIZE"):  # of torchrun
        words[:1] = ["torchrun", "--nproc-per-node", count, "-m", "eagle.cli"]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value is None or value == parameter.default:
            continue
        flag = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        if isinstance(value, bool):  # a switch, which takes no value
            words += flag if value else parameter.secondary_opts[:1]
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [*flag, str(each)]
    return shlex.join(words)
