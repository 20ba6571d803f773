"""Every block of the guides does what its page says, and every command that a page shows exists."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from tests.docs.blocks import ROOT, blocks_of, commands_of, files_of, pages

REASONS = ("needs a network", "needs a GPU", "needs vLLM", "takes minutes")
EMBEDDED = {"README.md", "getting-started.md"}
"""Pages for somebody who has no model yet: they use the embedded one."""


def case(page):
    marks = [pytest.mark.embedded] if page.name in EMBEDDED else []
    return pytest.param(page, marks=marks, id=page.stem)


@pytest.mark.parametrize("page", [case(page) for page in pages()])
def test_the_blocks_of_a_page_run_one_after_the_other(page, given, shell, tmp_path, monkeypatch):
    for name in files_of(page):
        copy = shutil.copytree if (given / name).is_dir() else shutil.copy
        copy(given / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks_of(page, "sh", "python"):
        if block.reason:
            continue
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
        else:
            ran = shell(block.code, tmp_path)
            assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"


def test_few_blocks_are_not_run_and_each_says_why():
    marked = [
        block for page in pages() for block in blocks_of(page, "sh", "python") if block.reason
    ]
    assert all(block.reason.startswith(REASONS) for block in marked)
    assert len(marked) <= 16


HIDDEN = re.compile(r"^ {4}(?:eagle|pip|python|torchrun|curl|from|import|with) .*$", re.MULTILINE)
"""Code by indentation alone, which nobody runs."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_no_page_has_code_that_the_tests_do_not_see(page):
    blocks = re.findall(r"^ *```([^\n`]*)\n.*?^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert {name for name in blocks if not name.startswith("{")} <= {"sh", "python", "yaml"}
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not HIDDEN.findall(prose)


def test_code_that_is_only_indented_is_noticed():
    assert HIDDEN.findall("So:\n\n    torchrun -m eagle.cli\n    from eagle import Engine\n")


def known():
    found = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    return sorted(page for page in found if "_build" not in page.parts)


@pytest.mark.parametrize("page", known(), ids=lambda page: page.stem)
def test_every_command_that_a_page_shows_is_understood(page):
    for command in commands_of(page):
        understand(command)


@pytest.mark.parametrize(
    "command", ["eagle generat x", "eagle generate x --sped mine.yaml", "eagle bench speed eagle"]
)
def test_a_command_that_does_not_exist_is_noticed(command):
    with pytest.raises(Exception, match=r"generat|sped|prompts"):
        understand(command)


def understand(command: str) -> None:
    """Parse a command as the program does, and run nothing."""
    import typer

    from eagle.cli import app

    words = shlex.split(command, comments=True)
    words = words[3:] if words[0] == "python" else words[1:]
    at, context = typer.main.get_command(app), None
    while True:
        context = at.make_context(at.name or "eagle", words, parent=context)
        words = [*context._protected_args, *context.args]
        if not words or not hasattr(at, "commands"):
            return
        _, at, words = at.resolve_command(context, words)


def test_a_mark_holds_for_the_block_below_it_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```sh\neagle chat\n```\n\n```sh\nls\n```\n")
    assert [block.reason for block in blocks_of(page, "sh")] == ["needs a GPU", None]
    assert commands_of(page) == ["eagle chat"]
