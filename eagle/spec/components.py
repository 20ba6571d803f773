"""One strategy's component: looked up, its settings checked, built, held to its role's methods.

Knows one component at a time; knows not what goes with what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from eagle.errors import PluginError
from eagle.plugin import (
    AcceptanceRule,
    AttentionBackend,
    BuildContext,
    DraftHead,
    FeatureExtractor,
    Law,
    Registered,
    Registry,
    Role,
    StrategyConfig,
    TrainingLoss,
    TreeBuilder,
)
from eagle.spec.blame import guarded
from eagle.spec.document import Document
from eagle.spec.schema import ComponentSpec

__all__ = ["Declared", "built", "configure", "declared", "lookup", "make", "nesting"]

_PROTOCOLS: dict[Role, type] = {
    Role.FEATURES: FeatureExtractor,
    Role.HEAD: DraftHead,
    Role.TREE: TreeBuilder,
    Role.ATTENTION: AttentionBackend,
    Role.ACCEPTANCE: AcceptanceRule,
    Role.LOSS: TrainingLoss,
}


def built(
    document: Document,
    registry: Registry,
    role: Role,
    component: ComponentSpec,
    context: BuildContext,
) -> tuple[Registered, StrategyConfig, Any]:
    """Build one component by itself, such as a loss of training.

    Args:
        document: where it was written, for messages.
        registry: where its strategy is looked up.
        role: its role; also the key of the document that it is written under.
        component: its strategy and settings.
        context: what its factory may use.

    Returns:
        The strategy, its settings, and what was made of them.

    Raises:
        EagleError: see `resolve`.
    """
    entry = lookup(document, registry, role, component)
    config = configure(document, entry, component)
    return entry, config, make(entry, config, context)


def nesting(document: Document, registry: Registry, context: BuildContext) -> BuildContext:
    """Return a context in which a component may build others, from specs within its own."""
    return replace(context, builder=partial(_nested, document, registry))


def _nested(
    document: Document,
    registry: Registry,
    role: Role,
    component: ComponentSpec,
    context: BuildContext,
) -> Any:
    return built(document, registry, role, component, context)[2]


def lookup(
    document: Document, registry: Registry, role: Role, component: ComponentSpec
) -> Registered:
    """Return the strategy of a component.

    Raises:
        UnknownStrategyError: no plug-in provides it; said with where it was written.
        PluginError: the plug-in that does cannot be loaded.
    """
    try:
        return registry.get(role, component.name)
    except PluginError as error:
        place = document.place((role.value, "name"))
        raise type(error)(f"{place}: {role.value}: {error}") from error.__cause__


def configure(document: Document, entry: Registered, component: ComponentSpec) -> StrategyConfig:
    """Return a component's settings, checked.

    Raises:
        SpecError: a setting is wrong.
        PluginError: the plug-in raises.
    """
    return guarded(
        entry,
        "its config",
        lambda: document.validate(entry.strategy.config, component.settings, (entry.role.value,)),
    )


def make(entry: Registered, config: StrategyConfig, context: BuildContext) -> Any:
    """Return a strategy's component.

    Raises:
        PluginError: the plug-in raises, or what it made lacks its role's methods.
    """
    component = guarded(entry, "build()", lambda: entry.strategy.build(config, context))
    protocol = _PROTOCOLS[entry.role]
    wanted = [name for name in dir(protocol) if not name.startswith("_")]
    lacking = guarded(
        entry, "a property", lambda: [name for name in wanted if not hasattr(component, name)]
    )
    if lacking:
        raise PluginError(
            f"{entry}: build() returned a {type(component).__name__}, which is no "
            f"{protocol.__name__}: it lacks {', '.join(lacking)}"
        )
    if entry.role in (Role.TREE, Role.ACCEPTANCE):
        odd = [law for law in component.laws if not isinstance(law, Law)]
        if odd:
            raise PluginError(
                f"{entry}: its component declares the laws {odd!r}, which are no eagle.plugin.Law"
            )
    return component


@dataclass(frozen=True)
class Declared:
    """What a strategy's component declares with its default settings.

    Attributes:
        laws: of a tree builder or an acceptance rule.
        lossless: of an acceptance rule; None for other roles.
    """

    laws: frozenset[Law]
    lossless: bool | None


def declared(entry: Registered) -> Declared | None:
    """Return what a tree builder or a rule declares by default.

    None for the other roles, and where it cannot be built without settings or without a target.
    """
    if entry.role not in (Role.TREE, Role.ACCEPTANCE):
        return None
    try:
        component = make(entry, entry.strategy.config(), BuildContext())
        rule = entry.role is Role.ACCEPTANCE
        return Declared(component.laws, bool(component.lossless) if rule else None)
    except Exception:  # a plug-in's code; who selects it is told what is wrong with it
        return None
