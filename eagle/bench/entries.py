"""Who takes part in a comparison: shipped specs, files, and strategies that somebody registered.

Knows names and what can be put together; it loads no weights and measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eagle.decoding import resolve_for
from eagle.errors import EagleError, SpecError, reason
from eagle.plugin import Registry, Role
from eagle.spec import DEFAULT_STRATEGIES, NONE, DecoderSpec, load_spec, shipped_specs

__all__ = ["Entry", "enter", "everybody"]

_BASE = "eagle"  # the spec that a strategy takes its place in
_ROLES = (Role.HEAD, Role.TREE, Role.ACCEPTANCE)
_CHAIN = "tree=chain"  # what a head or a rule may serve that cannot serve the default tree


@dataclass(frozen=True)
class Entry:
    """One who takes part.

    Attributes:
        name: as it was given.
        spec: what is measured; None where it cannot be.
        problem: why it cannot be, in a sentence.
    """

    name: str
    spec: DecoderSpec | None = None
    problem: str = ""


def everybody(registry: Registry) -> list[str]:
    """Return the names of all shipped specs, and of all strategies that none of these uses.

    Plain decoding is left out, as it is measured beside them.
    """
    specs = {name: load_spec(name) for name in shipped_specs()}
    used = {(role, spec.component(role).name) for spec in specs.values() for role in _ROLES}
    used |= {(role, DEFAULT_STRATEGIES[role]) for role in _ROLES}
    used |= {(Role.HEAD, _BASE), *((role, NONE) for role in _ROLES)}
    drafting = [name for name, spec in specs.items() if spec.head.name != NONE]
    others = [
        entry.name
        for role in _ROLES
        for entry in registry.strategies(role)
        if (role, entry.name) not in used
    ]
    return [*drafting, *dict.fromkeys(others)]


def enter(names: Sequence[str], settings: Sequence[str], registry: Registry) -> list[Entry]:
    """Return what takes part under some names.

    A name is that of a shipped spec, a YAML file's, or that of a draft head, a tree builder or an
    acceptance rule: then it is the default spec with that strategy in its place, and with a chain
    for a tree where the strategy does not go with the default one.

    Args:
        names: of all who take part.
        settings: ``key=value`` for every spec.
        registry: the strategies that there are.
    """
    return [_entry(name, settings, registry) for name in dict.fromkeys(names)]


def _entry(name: str, settings: Sequence[str], registry: Registry) -> Entry:
    roles = [
        role
        for role in _ROLES
        if name not in shipped_specs()
        and any(entry.name == name for entry in registry.strategies(role))
    ]
    if not roles:
        ways: list[tuple[str, list[str]]] = [(name, [])]
    else:
        mine = f"{roles[0].value}={name}"
        ways = [(_BASE, [mine])]
        if roles[0] is not Role.TREE:
            ways.append((_BASE, [mine, _CHAIN]))
    problems = []
    for spec, own in ways:
        try:
            # What is set for all comes last, and may replace it.
            loaded = load_spec(spec, [*own, *settings])
            resolve_for(loaded, registry)
        except EagleError as error:
            problems.append(reason(error))
            if not isinstance(error, SpecError):
                break
        else:
            shown = name if roles else loaded.name
            return Entry(shown, loaded.model_copy(update={"name": shown}))
    return Entry(name, problem=problems[0])
