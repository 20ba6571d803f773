"""The code blocks of a page, in order, and why some are not run; knows no command."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks_of", "commands_of", "files_of", "pages"]

ROOT = Path(__file__).parents[2]

FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SKIPPED = re.compile(r"<!-- not run: (.+?) -->\s*$")
FILES = re.compile(r"<!-- files: (.+?) -->")
COMMAND = re.compile(
    r"(?:^|&& |\| |\$\()((?:eagle|python -m eagle\.cli) .+?)(?= &&| \| | >|  +#|$)"
)

LETTER = re.compile(r"^[A-Z]  (?=eagle )")
"""Before a command that a table refers to."""


@dataclass(frozen=True)
class Block:
    """A block of code, where it begins, and why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return the pages whose every block is run or marked."""
    docs = ROOT / "docs"
    guides = sorted((docs / "guides").glob("*.md"))
    return [ROOT / "README.md", docs / "getting-started.md", *guides]


def blocks_of(page: Path, *languages: str) -> list[Block]:
    """Return a page's fenced blocks of some languages, in order."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        if match[2] in languages:
            before = text[: match.start()]
            mark = SKIPPED.search(before)
            line = before.count("\n") + 2
            code = textwrap.dedent(match[3])
            found.append(Block(page, line, match[2], code, mark and mark[1]))
    return found


def files_of(page: Path) -> list[str]:
    """Return the files that a page takes as given."""
    match = FILES.search(page.read_text())
    return match[1].split() if match else []


def commands_of(page: Path) -> list[str]:
    """Return every command of ours that a page shows, run or not, in blocks of any kind."""
    fenced = [block.code for block in blocks_of(page, "sh", "console")]
    indented = re.findall(r"^ {4}(?:[A-Z]  )?eagle (?:.*\\\n)*.*$", page.read_text(), re.MULTILINE)
    lines = "\n".join([*fenced, *map(textwrap.dedent, indented)]).replace("\\\n", " ").splitlines()
    return [match[1] for line in lines for match in COMMAND.finditer(LETTER.sub("", line.strip()))]
