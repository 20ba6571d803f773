"""``eagle plugins``: which strategies are installed, and which plug-ins are broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from eagle.cli import console
from eagle.cli.collecting import without_collection
from eagle.cli.options import Json
from eagle.errors import nearest

if TYPE_CHECKING:
    from eagle.plugin import Registry, Role
    from eagle.spec import Declared

EXAMPLES = console.examples("eagle plugins", "eagle plugins --role tree", "eagle plugins --json")


def plugins(
    role: Annotated[
        str | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="Only this role: features, head, tree, attention, acceptance or loss.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the installed strategies by role, and the plug-ins that are broken, with the reason."""
    with without_collection():
        from eagle.plugin import default_registry

        registry, chosen = default_registry(), _role(role)
    if as_json:
        console.emit_json(_describe(registry, chosen))
    else:
        _print(registry, chosen)


def _role(name: str | None) -> Role | None:
    from eagle.plugin import Role

    known = [role.value for role in Role]
    if name is not None and name not in known:
        raise typer.BadParameter(
            f"{name!r} is no role.{nearest(name, known)} Roles: {', '.join(known)}.",
            param_hint="--role",
        )
    return Role(name) if name else None


def _describe(registry: Registry, role: Role | None) -> dict[str, Any]:
    from eagle.spec import declared

    return {
        "strategies": [
            {
                "role": entry.role.value,
                "name": entry.name,
                "plugin": entry.origin.plugin,
                "distribution": entry.origin.distribution,
                "version": entry.origin.version,
                "description": entry.strategy.description,
                "laws": _laws(known),
                "lossless": known.lossless if known else None,
            }
            for entry in registry.strategies(role)
            for known in [declared(entry)]
        ],
        "broken": [
            {"name": broken.name, "distribution": broken.distribution, "reason": broken.reason}
            for broken in registry.broken
        ],
    }


def _laws(known: Declared | None) -> list[str]:
    return sorted(law.name for law in known.laws) if known else []


def _print(registry: Registry, role: Role | None) -> None:
    from eagle.plugin import ROLE_TITLES
    from eagle.spec import declared

    table = Table.grid(padding=(0, 2))
    heading = None
    for entry in registry.strategies(role):
        if entry.role != heading:
            heading = entry.role
            table.add_row(f"[bold]{heading.value}[/]", f"[bold]{ROLE_TITLES[heading]}s[/]")
        details = [entry.origin.release]
        known = declared(entry)
        if laws := _laws(known):
            details.append(f"siblings: {', '.join(laws)}")
        if known and known.lossless is not None:
            details.append("lossless" if known.lossless else "not lossless")
        table.add_row(
            f"  {escape(entry.name)}",
            f"{escape(entry.strategy.description)}\n[dim]{escape(' · '.join(details))}[/]",
        )
    console.out.print(table)
    for broken in registry.broken:
        console.out.print(f"[bold red]broken:[/] {escape(str(broken))}", soft_wrap=True)
