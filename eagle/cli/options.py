"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eagle.bench import Shape

__all__ = [
    "ConfigOverrides",
    "Json",
    "Overrides",
    "ServerUrl",
    "Shapes",
    "SpecName",
    "Template",
    "decimals",
    "numbers",
    "settings_of",
    "shape_of",
    "template_of",
]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the spec, as in tree.depth=3; may be repeated.",
        show_default=False,
    ),
]

ConfigOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the training config, its path joined by dots and its value in YAML, "
        "as in optimizer.lr=5e-4 or max_seconds=null; may be repeated.",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]

SpecName = Annotated[
    str, typer.Argument(metavar="SPEC", help="A shipped spec's name, or a YAML file.")
]

Template = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="KEY=VALUE",
        help="Give the chat template a variable, its value in YAML, as in enable_thinking=false or "
        "tools=[...]; may be repeated.",
        show_default=False,
    ),
]

ServerUrl = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="An OpenAI-compatible server, as in http://127.0.0.1:8000; its key is read from "
        "EAGLE_API_KEY or OPENAI_API_KEY.",
        show_default=False,
    ),
]

Shapes = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="NAME",
        help="Embed target and heads in a larger model's shape, llama2-7b say: the same answers "
        "at that shape's cost.",
        show_default=False,
    ),
]


def settings_of(overrides: Sequence[str] | None, target: str | None) -> list[str]:
    """Return what ``--set`` and ``--target`` change of a spec, as `load_spec` takes it."""
    given = [] if target is None else [f"target.model={json.dumps(target)}"]
    return [*(overrides or ()), *given]


def template_of(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Return what ``--template`` gives the chat template, by name; None if it gives nothing.

    Raises:
        RequestError: one is no ``key=value``, or its value is not YAML.
    """
    if not given:
        return None
    from eagle.errors import RequestError
    from eagle.spec import read_value

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(
                f"--template {text:.80}: must look like key=value, as in enable_thinking=false"
            )
        if name in found:
            raise RequestError(f"--template {name}: is given twice")
        try:
            found[name] = read_value(value)
        except ValueError as error:
            raise RequestError(f"--template {name}: the value {error}") from error
    return found


def shape_of(name: str | None) -> Shape | None:
    """Return the shape that an option names, or None without one.

    Raises:
        RequestError: there is none of that name.
    """
    if name is None:
        return None
    from eagle.bench import find_shape

    return find_shape(name)


def numbers(option: str, text: str) -> list[int]:
    """Return the numbers that an option lists with commas between them.

    Raises:
        RequestError: they are none, or one is below 1.
    """
    from eagle.errors import RequestError

    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"{option}: should be numbers like 1,8,26, not {text!r}") from error
    if min(found) < 1:
        raise RequestError(f"{option}: should be numbers of at least 1, not {text!r}")
    return found


def decimals(option: str, text: str | None) -> list[float]:
    """Return the numbers, of any size from 0 on, that an option lists; none without it.

    Raises:
        RequestError: they are no numbers, or one is below 0.
    """
    import math

    from eagle.errors import RequestError

    if text is None:
        return []
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"{option}: should be numbers like 0.5,1,2, not {text!r}") from error
    if not all(0 <= one < math.inf for one in found):
        raise RequestError(f"{option}: should be numbers of at least 0, not {text!r}")
    return found
