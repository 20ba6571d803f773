"""Make the pictures of the pages from real runs; knows commands and files, nothing of decoding.

    python docs/pictures.py              # all of them, into docs/_static
    python docs/pictures.py generate     # one

A terminal's output becomes an SVG, colours included. Run it on a machine that does nothing else:
what a command prints of speed is in the picture.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

STATIC = Path(__file__).parent / "_static"
QUESTION = "Why is the sky blue?"

TERMINAL = {
    "generate": ["eagle", "generate", QUESTION, "--max-new-tokens", "120"],
    "tree-terminal": ["eagle", "tree", QUESTION, "--cycle", "4"],
    "spec-error": ["eagle", "generate", QUESTION, "--set", "tree.depht=3"],
}
DRAWN = {"tree": ["eagle", "tree", QUESTION, "--cycle", "7", "--set", "tree.branching=[3,2,1]"]}
COLUMNS = 88

SPINNER = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h(?:\x1b\[1A\x1b\[2K)*\r?", re.DOTALL)
REMOTE_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""A page fetches nothing from elsewhere, and a picture in it cannot."""


def run(command: list[str]) -> str:
    """Return what a command shows, escape sequences included, without its spinners."""
    env = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    ran = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return SPINNER.sub("", ran.stdout).strip("\n")


def shown(command: list[str]) -> str:
    """Return a command as one types it."""
    return " ".join(f'"{word}"' if " " in word else word for word in command)


def terminal(command: list[str], name: str) -> str:
    """Return the SVG of a terminal in which a command was run."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False
    )
    console.print(Text.assemble(("$ ", "bold green"), (shown(command), "bold")))
    console.print(Text.from_ansi(run(command)))
    svg = console.export_svg(title="", unique_id=name)
    svg = REMOTE_FONTS.sub("", svg).replace("Fira Code", "ui-monospace, DejaVu Sans Mono")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main(names: list[str]) -> None:
    """Make the pictures of these names, or all."""
    STATIC.mkdir(exist_ok=True)
    for name in names or [*TERMINAL, *DRAWN]:
        file = STATIC / f"{name}.svg"
        if name in DRAWN:
            run([*DRAWN[name], "--svg", str(file)])
        else:
            file.write_text(terminal(TERMINAL[name], name), encoding="utf-8")
        print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
