"""Which strategies exist: finds plug-ins and holds what they register; builds nothing."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from eagle.errors import PluginError, UnknownStrategyError, nearest
from eagle.plugin.hooks import ENTRY_POINT_GROUP, HOOKS, EagleHooks
from eagle.plugin.roles import Role, Strategy, StrategyConfig

__all__ = [
    "ROLE_TITLES",
    "Broken",
    "Origin",
    "Registered",
    "Registry",
    "default_registry",
    "describe",
]

ROLE_TITLES = {
    Role.FEATURES: "feature extractor",
    Role.HEAD: "draft head",
    Role.TREE: "tree builder",
    Role.ATTENTION: "attention backend",
    Role.ACCEPTANCE: "acceptance rule",
    Role.LOSS: "training loss",
}
"""What messages call a strategy of each role."""


@dataclass(frozen=True)
class Origin:
    """Where strategies come from.

    Attributes:
        plugin: name of the plug-in's entry point.
        distribution: name of the installed distribution that declares it.
        version: that distribution's version, or an empty string.
    """

    plugin: str
    distribution: str
    version: str = ""

    @property
    def release(self) -> str:
        """Distribution and version, as in ``eagle-decoding 0.1.0``."""
        return f"{self.distribution} {self.version}".rstrip()

    def __str__(self) -> str:
        return f"plug-in {self.plugin!r} of {self.release}"


@dataclass(frozen=True)
class Registered:
    """A strategy with its role and its origin."""

    role: Role
    strategy: Strategy[Any]
    origin: Origin

    @property
    def name(self) -> str:
        """How a spec selects it."""
        return self.strategy.name

    def __str__(self) -> str:
        return f"{ROLE_TITLES[self.role]} {self.name!r} ({self.origin.release})"


@dataclass(frozen=True)
class Broken:
    """A plug-in that was refused as a whole, or a name that two plug-ins claim.

    Attributes:
        name: the plug-in's name; for a collision ``role/name``.
        distribution: the distribution, or both, with versions.
        reason: what is wrong, in one line.
        error: what was raised, kept for a traceback.
    """

    name: str
    distribution: str
    reason: str
    error: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution}): {self.reason}"


class Registry:
    """The strategies of a set of plug-ins, by role and name.

    A plug-in that cannot be used is recorded in `broken` and never raises here, so that one bad
    installation does not stop a spec that does not need it. An empty registry knows nothing;
    `discover` fills one from the installed distributions.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("eagle")
        self._manager.add_hookspecs(EagleHooks)
        self._claims: dict[tuple[Role, str], list[Registered]] = {}
        self._broken: list[Broken] = []

    @classmethod
    def discover(cls) -> Registry:
        """Load every entry point of the group ``eagle.plugins``."""
        registry = cls()
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
            registry._load(point)
        return registry

    def _load(self, point: EntryPoint) -> None:
        name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        origin = Origin(point.name, name, version)
        try:
            with redirect_stdout(sys.stderr):  # what it prints is no result of a command
                plugin = point.load()
        except (Exception, SystemExit) as error:
            self._refuse(origin, f"importing {point.value} failed: {describe(error)}", error)
        else:
            self._add(plugin, origin)

    def register(
        self, plugin: object, name: str, distribution: str = "unpackaged", version: str = ""
    ) -> None:
        """Add a plug-in, a module or object with hook implementations, by hand.

        Args:
            plugin: what an entry point would name.
            name: what messages call it.
            distribution: the distribution that messages name.
            version: its version.

        Raises:
            PluginError: the plug-in is refused; it is recorded in `broken` too.
        """
        before = len(self._broken)
        self._add(plugin, Origin(name, distribution, version))
        if len(self._broken) > before:
            refused = self._broken[-1]
            raise PluginError(f"plug-in {refused}") from refused.error

    def _add(self, plugin: object, origin: Origin) -> None:
        try:
            found = self._strategies(plugin, f"{origin.distribution}:{origin.plugin}:{id(plugin)}")
        except Exception as error:  # looking at the object may run its code
            self._refuse(origin, describe(error), error.__cause__ or error)
            return
        for role, strategy in found:
            entry = Registered(role, strategy, origin)
            self._claims.setdefault((role, strategy.name), []).append(entry)

    def _refuse(self, origin: Origin, reason: str, error: BaseException | None) -> None:
        self._broken.append(Broken(origin.plugin, origin.release, reason, error))

    def _strategies(self, plugin: object, key: str) -> list[tuple[Role, Strategy[Any]]]:
        """Return all that a plug-in registers, or raise `PluginError` with the reason."""
        _require_markers(plugin)
        if self._manager.is_registered(plugin):
            raise PluginError("the same module or object is registered already")
        try:
            self._manager.register(plugin, key)
            self._manager.check_pending()
            return [pair for role, hook in HOOKS.items() for pair in self._call(plugin, role, hook)]
        except (pluggy.PluginValidationError, PluginError) as error:
            reason = self._misspelt(plugin) or describe(error)
            # pluggy keeps the hooks that it took before it raised.
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise PluginError(reason) from (error.__cause__ or error)

    def _misspelt(self, plugin: object) -> str:
        callers = self._manager.get_hookcallers(plugin) or []
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        return "; ".join(
            f"implements the unknown hook {name!r}.{nearest(name, HOOKS.values())}"
            for name in unknown
        )

    def _call(self, plugin: object, role: Role, hook: str) -> Iterable[tuple[Role, Strategy[Any]]]:
        caller = getattr(self._manager.hook, hook)
        own = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
        if any(impl.wrapper or impl.hookwrapper for impl in own):
            raise PluginError(f"its hook {hook!r} is a wrapper; it must return strategies")
        try:
            # Not `caller()`: an exception must be put down to the plug-in that raised it.
            with redirect_stdout(sys.stderr):
                results = [impl.function() for impl in own]
                lists = [result for result in results if isinstance(result, Iterable)]
                strategies = [strategy for result in lists for strategy in result]
        except (Exception, SystemExit) as error:
            raise PluginError(f"its hook {hook!r} raised {describe(error)}") from error
        for odd in results:
            if not isinstance(odd, Iterable):
                raise PluginError(
                    f"its hook {hook!r} returned {odd!r} instead of a list of Strategy"
                )
        names = set()
        for strategy in strategies:
            if problem := _problem(strategy):
                raise PluginError(f"its hook {hook!r} returned {problem}")
            if strategy.name in names:
                raise PluginError(f"its hook {hook!r} returned two strategies {strategy.name!r}")
            names.add(strategy.name)
            yield role, strategy

    def strategies(self, role: Role | None = None) -> list[Registered]:
        """Return the usable strategies, of one role or of all, ordered by role and name."""
        order = list(Role)
        usable = [claims[0] for claims in self._claims.values() if len(claims) == 1]
        chosen = [entry for entry in usable if role is None or entry.role == role]
        return sorted(chosen, key=lambda entry: (order.index(entry.role), entry.name))

    @property
    def broken(self) -> list[Broken]:
        """Plug-ins that were refused and names that are claimed twice."""
        collisions = [
            Broken(
                f"{role.value}/{name}",
                " and ".join(entry.origin.release for entry in claims),
                _collision(role, name, claims),
            )
            for (role, name), claims in self._claims.items()
            if len(claims) > 1
        ]
        return self._broken + collisions

    def get(self, role: Role, name: str) -> Registered:
        """Return the strategy that a spec selects.

        Raises:
            PluginError: several plug-ins claim the name.
            UnknownStrategyError: nobody provides it; broken plug-ins that might are named.
        """
        claims = self._claims.get((role, name), [])
        if len(claims) > 1:
            raise PluginError(_collision(role, name, claims))
        if claims:
            return claims[0]
        known = [entry.name for entry in self.strategies(role)]
        message = (
            f"no {ROLE_TITLES[role]} is named {name!r}.{nearest(name, known)} "
            f"Known: {', '.join(known) or 'none'}."
        )
        if self._broken:
            message += " It may belong to a plug-in that is broken: " + "; ".join(
                map(str, self._broken)
            )
        raise UnknownStrategyError(message) from (self._broken[0].error if self._broken else None)


@cache
def default_registry() -> Registry:
    """Return the registry of the installed plug-ins, discovered at the first call."""
    return Registry.discover()


def describe(error: BaseException) -> str:
    """Return what a plug-in raised, in one line."""
    if isinstance(error, PluginError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def _collision(role: Role, name: str, claims: list[Registered]) -> str:
    return (
        f"the {ROLE_TITLES[role]} {name!r} is claimed by "
        f"{' and by '.join(str(entry.origin) for entry in claims)}; uninstall all but one of them"
    )


def _require_markers(plugin: object) -> None:
    """Refuse a plug-in of which pluggy would silently ignore everything."""
    marked = [n for n in dir(plugin) if hasattr(getattr(plugin, n, None), "eagle_impl")]
    for name in HOOKS.values():
        if name not in marked and inspect.isroutine(getattr(plugin, name, None)):
            raise PluginError(f"{name!r} is not marked with @eagle.plugin.hookimpl")
    if not marked:
        known = ", ".join(HOOKS.values())
        raise PluginError(f"implements no hook; known hooks: {known}")


def _problem(strategy: object) -> str:
    """Return what makes a registered object unusable, or an empty string."""
    if not isinstance(strategy, Strategy):
        return f"{strategy!r}, which is no Strategy"
    name = strategy.name
    if not isinstance(name, str) or not name or name != name.strip():
        return f"a strategy whose name is {name!r}; it must be a word"
    if not (isinstance(strategy.config, type) and issubclass(strategy.config, StrategyConfig)):
        return f"the strategy {name!r}, whose config is no subclass of StrategyConfig"
    if "name" in strategy.config.model_fields:
        return f"the strategy {name!r}, whose config has a field 'name'; a spec uses that key"
    if not callable(strategy.build):
        return f"the strategy {name!r}, whose build cannot be called"
    return ""
