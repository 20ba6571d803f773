"""The page of the command line, written from the program itself whenever the pages are built."""

from __future__ import annotations

import html
import re
from typing import Any

PLACE = "<!-- here the build puts every command of the program -->"
"""The line of a page that the commands take the place of."""

MARKUP = re.compile(r"\[/?[a-z ]*\]")


def program() -> Any:
    """Return the program as a group of commands, as typer makes it."""
    import typer

    from eagle.cli import app

    return typer.main.get_command(app)


def leaves(command: Any, name: str = "eagle") -> list[tuple[str, Any]]:
    """Return the commands that can be run, each with its whole name, in the program's order."""
    if not hasattr(command, "commands"):
        # What is hidden goes by the name of its group, as `eagle train CONFIG` does.
        return [(name.rpartition(" ")[0] if command.hidden else name, command)]
    return [leaf for key, one in command.commands.items() for leaf in leaves(one, f"{name} {key}")]


def page() -> str:
    """Return all commands in Markdown."""
    return "\n\n".join(_section(name, command) for name, command in leaves(program()))


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([name, *(_metavar(p) for p in arguments), "[OPTIONS]"])
    parts = [f"## {name}", f"```text\n{usage}\n```", _prose(command.help or "")]
    if rows := [_row(p) for p in [*arguments, *options]]:
        parts.append("\n".join(["| | |", "|---|---|", *rows]))
    lines = [line.strip() for line in MARKUP.sub("", command.epilog or "").splitlines()]
    if shown := [line for line in lines if line.startswith(("eagle", "cat", "accelerate"))]:
        parts.append("\n".join(["```text", *shown, "```"]))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    text = re.sub(r"(?<!`)``(?!`)", "`", text)
    return re.sub(r"^ *(#.*)$", r"`\1`", text, flags=re.MULTILINE)  # a line of YAML, no heading


def _metavar(parameter: Any) -> str:
    if choices := getattr(getattr(parameter, "type", None), "choices", None):
        return "|".join(map(str, choices))
    return str(parameter.metavar or parameter.name.upper())


def _row(parameter: Any) -> str:
    flag = getattr(parameter, "is_flag", False)
    if parameter.param_type_name == "argument":
        name = _metavar(parameter)
    else:
        name = max(parameter.opts, key=len) + ("" if flag else " " + _metavar(parameter))
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if parameter.required:
        text += " Required."
    elif parameter.show_default and not flag and isinstance(default, str | int | float):
        text += f" Default: `{default}`."
    name = name.replace("|", "\\|")
    return f"| `{name}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return html.escape(_prose(text), quote=False).replace("|", "\\|")


def _insert(app: Any, name: str, source: list[str]) -> None:
    source[0] = source[0].replace(PLACE, page()) if PLACE in source[0] else source[0]


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx put the commands in their place; the page is read anew in every build."""
    app.connect("source-read", _insert)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["cli"])
    return {"parallel_read_safe": True}
