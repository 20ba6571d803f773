"""Make the pictures of the pages from real runs; knows commands and files, nothing of decoding.

    python docs/pictures.py              # all of them, into docs/_static
    python docs/pictures.py generate     # one

A terminal's output becomes an SVG, colours included; the server's page is photographed in Chromium
(which the system has; `playwright` comes with the extra `dev`). Run it on a machine that does
nothing else: what a command prints of speed is in the picture.
"""

from __future__ import annotations

import io
import os
import re
import shutil
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
PAGE, ASKED = "serve-page", "Why do cats purr?"
COLUMNS = 88

SPINNER = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h(?:\x1b\[1A\x1b\[2K)*\r?", re.DOTALL)
SERVING = re.compile(r"serving (http://.+?)/v1")
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


def photograph(file: Path) -> None:
    """Serve the embedded model, ask its page, and save what is seen."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    serving = subprocess.Popen(
        ["eagle", "serve", "--port", "0"], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert serving.stderr
        said = next(filter(None, map(SERVING.search, serving.stderr)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1360, "height": 720}, color_scheme="light")
            page.goto(said[1])
            page.wait_for_selector("#spec option", state="attached")
            page.fill("#temperature", "0")
            page.fill("#max_tokens", "70")
            page.check("#compare")
            for _ in range(2):  # the first answer has warming up in it
                page.click("#clear")
                page.fill("#prompt", ASKED)
                page.press("#prompt", "Enter")
                page.wait_for_selector("#same", timeout=120_000)
            page.click("#strip [data-cycle='3']")
            page.focus("#prompt")
            page.wait_for_timeout(1000)  # until the tree has grown
            page.screenshot(path=file)
            browser.close()
    finally:
        serving.terminate()
        serving.communicate()


def main(names: list[str]) -> None:
    """Make the pictures of these names, or all."""
    STATIC.mkdir(exist_ok=True)
    for name in names or [*TERMINAL, *DRAWN, PAGE]:
        file = STATIC / (f"{name}.png" if name == PAGE else f"{name}.svg")
        if name == PAGE:
            photograph(file)
        elif name in DRAWN:
            run([*DRAWN[name], "--svg", str(file)])
        else:
            file.write_text(terminal(TERMINAL[name], name), encoding="utf-8")
        print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
