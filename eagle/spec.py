"""Decoder specs: YAML to checked models to built components; loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from eagle.document import Document
from eagle.errors import (
    EagleError,
    IncompatibleError,
    PluginError,
    SpecError,
    brief,
    clipped,
    nearest,
)
from eagle.files import expanded
from eagle.registry import ROLE_TITLES, Registered, Registry, describe
from eagle.roles import (
    AcceptanceRule,
    AttentionBackend,
    BuildContext,
    Component,
    DraftHead,
    FeatureExtractor,
    Law,
    Role,
    StrategyConfig,
    TargetInfo,
    TreeBuilder,
)
from eagle.schema import (
    DEFAULT_STRATEGIES,
    ComponentSpec,
    DecoderSpec,
    RuntimeSpec,
    TargetSpec,
    json_schema,
)

__all__ = [
    "ComponentSpec",
    "DecoderSpec",
    "Resolved",
    "RuntimeSpec",
    "TargetSpec",
    "json_schema",
    "load_spec",
    "resolve",
    "shipped_specs",
]

NONE = "none"
"""In the roles head and tree, the strategy that drafts nothing."""

_OWN = "eagle-decoding"  # the distribution of this package

_PROTOCOLS: dict[Role, type] = {
    Role.FEATURES: FeatureExtractor,
    Role.HEAD: DraftHead,
    Role.TREE: TreeBuilder,
    Role.ATTENTION: AttentionBackend,
    Role.ACCEPTANCE: AcceptanceRule,
}


def shipped_specs() -> dict[str, Path]:
    """Return the files of the specs that come with the package, by name."""
    folder = Path(str(resources.files("eagle.specs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_spec(spec: str | Path, overrides: Sequence[str] = ()) -> DecoderSpec:
    """Read a decoder spec.

    Args:
        spec: name of a shipped spec, or path of a YAML file.
        overrides: ``path.to.key=value`` each, values in YAML; ``tree.depth=3`` keeps the tree's
            strategy, ``tree=chain`` replaces it with all its settings.

    Raises:
        SpecError: there is no such spec, it is not YAML, or a key or value is wrong.
    """
    if not isinstance(spec, (str, Path)):
        raise SpecError(
            f"a spec is given by a shipped spec's name or a YAML file's path, not as "
            f"{type(spec).__name__}"
        )
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise SpecError(
            f"overrides are a list of 'path.to.key=value', not {type(overrides).__name__}"
        )
    if odd := [item for item in overrides if not isinstance(item, str)]:
        raise SpecError(f"overrides are 'path.to.key=value' each, not {type(odd[0]).__name__}")
    document = _find(spec).override(
        overrides, {role.value: name for role, name in DEFAULT_STRATEGIES.items()}
    )
    loaded = document.validate(DecoderSpec, document.data)
    if not loaded.name:
        loaded = loaded.model_copy(update={"name": Path(spec).stem})
    loaded._document = document
    return loaded


def _find(spec: str | Path) -> Document:
    shipped = shipped_specs()
    if str(spec) in shipped:
        found = Document.read(shipped[str(spec)])
        # Nobody means the installed package's folder by a relative path.
        return replace(found, label=str(spec), folder=Path())
    path = expanded(spec)
    try:
        if path.is_file() or path.suffix in (".yaml", ".yml"):
            return Document.read(path)
    except (OSError, ValueError) as error:  # too long, or with a NUL
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"{brief(str(spec))} names no spec and no file: {why}") from error
    raise SpecError(
        f"no spec is named {clipped(str(spec))!r}, and there is no such file."
        f"{nearest(str(spec), shipped)} Shipped: {', '.join(shipped)}."
    )


@dataclass(frozen=True)
class Resolved:
    """A spec's components, built and found compatible, without weights."""

    spec: DecoderSpec
    strategies: Mapping[Role, Registered]
    features: FeatureExtractor
    head: DraftHead
    tree: TreeBuilder
    attention: AttentionBackend
    acceptance: AcceptanceRule

    @property
    def lossless(self) -> bool:
        """Whether the output has exactly the target's distribution."""
        return self.acceptance.lossless

    @property
    def capturable(self) -> bool:
        """Whether no component reads the device on the host in a cycle, as graphs will need."""
        return all(component.capturable for component in self.components.values())

    @property
    def components(self) -> dict[Role, Component]:
        """The components by role."""
        return {role: getattr(self, role.value) for role in Role}

    def blame(self, error: BaseException) -> PluginError | None:
        """Return an error that names the component in which an exception arose, if one did.

        An exception of the loop may come of what a component returned, so it names the components
        that are of other distributions. None where there is nobody but this package.

        Reading the traceback costs nothing until something is raised, unlike a wrapper around
        every call that the loop makes.
        """
        frames = []
        trace = error.__traceback__
        while trace:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        for frame in reversed(frames):
            for role, component in self.components.items():
                if frame.f_locals.get("self") is component:
                    where = f"{frame.f_code.co_name}()"
                    return _raised(self.strategies[role], where, error)
        return _suspected(self.strategies, error)

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Let an exception that a component raises name the component; see `blame`."""
        try:
            yield
        except EagleError:
            raise
        except Exception as error:
            culprit = self.blame(error)
            if culprit is None:
                raise
            raise culprit from error


def resolve(spec: DecoderSpec, registry: Registry, context: BuildContext | None = None) -> Resolved:
    """Build a spec's components and check that they go together; no weight is loaded.

    Args:
        spec: the spec.
        registry: where its strategies are looked up.
        context: the target's sizes if they are known; without, feature sizes are not compared.

    Raises:
        UnknownStrategyError: no plug-in provides a strategy.
        SpecError: a strategy's settings are wrong.
        IncompatibleError: the strategies' declarations exclude each other.
        PluginError: a plug-in raises, or its component is not what it declares.
    """
    context = context or BuildContext(folder=spec.folder)
    strategies = {role: _lookup(spec, registry, role) for role in Role}
    configs = {role: _configure(spec, strategies[role]) for role in Role}
    built = {role: _build(strategies[role], configs[role], context) for role in Role}
    resolved = Resolved(spec, strategies, **{role.value: built[role] for role in Role})
    _check_pairing(resolved)
    _check_laws(resolved, registry)
    if context.target is not None:
        _check_features(resolved, context.target)
    return resolved


def _lookup(spec: DecoderSpec, registry: Registry, role: Role) -> Registered:
    try:
        return registry.get(role, spec.component(role).name)
    except PluginError as error:
        place = spec.document.place((role.value, "name"))
        raise type(error)(f"{place}: {role.value}: {error}") from error.__cause__


def _configure(spec: DecoderSpec, entry: Registered) -> StrategyConfig:
    settings = spec.component(entry.role).settings
    return _guarded(
        entry,
        "its config",
        lambda: spec.document.validate(entry.strategy.config, settings, (entry.role.value,)),
    )


def _build(entry: Registered, config: StrategyConfig, context: BuildContext) -> Any:
    component = _guarded(entry, "build()", lambda: entry.strategy.build(config, context))
    protocol = _PROTOCOLS[entry.role]
    wanted = [name for name in dir(protocol) if not name.startswith("_")]
    lacking = _guarded(
        entry, "a property", lambda: [name for name in wanted if not hasattr(component, name)]
    )
    if lacking:
        raise PluginError(
            f"{entry}: build() returned a {type(component).__name__}, which is no "
            f"{protocol.__name__}: it lacks {', '.join(lacking)}"
        )
    return component


_T = TypeVar("_T")


def _guarded(entry: Registered, where: str, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except EagleError:
        raise
    except Exception as error:
        raise _raised(entry, where, error) from error


def _raised(entry: Registered, where: str, error: BaseException) -> PluginError:
    return PluginError(f"{entry}, {entry.origin}: {where} raised {describe(error)}")


def _suspected(strategies: Mapping[Role, Registered], error: BaseException) -> PluginError | None:
    others = {
        role: entry for role, entry in strategies.items() if entry.origin.distribution != _OWN
    }
    if not others:
        return None
    names = " and ".join(map(str, others.values()))
    checks = ", ".join(f"check_{'_'.join(ROLE_TITLES[role].split())}" for role in others)
    return PluginError(
        f"the loop raised {describe(error)}, perhaps by what {names} returned, not of this "
        f"package; eagle.testing ({checks}) tells whether it is what its role asks for"
    )


def _check_pairing(resolved: Resolved) -> None:
    shape = resolved.tree.shape
    if resolved.strategies[Role.HEAD].name == NONE and shape.depth > 0:
        raise _incompatible(
            resolved,
            Role.TREE,
            f"{resolved.strategies[Role.TREE]} drafts {shape.depth} levels, but the head "
            f"{NONE!r} drafts nothing; use `tree: {NONE}` with it, or another head",
        )


def _check_laws(resolved: Resolved, registry: Registry) -> None:
    tree, rule = resolved.strategies[Role.TREE], resolved.strategies[Role.ACCEPTANCE]
    drawn, kept = resolved.tree.laws, resolved.acceptance.laws
    for entry, laws in ((tree, drawn), (rule, kept)):
        if extra := laws - entry.strategy.laws:
            raise PluginError(
                f"{entry}: its component declares {_names(extra)}, but its plug-in registers it "
                f"for {_names(entry.strategy.laws)}"
            )
    if not resolved.lossless or drawn <= kept:
        return
    trees = [e.name for e in registry.strategies(Role.TREE) if e.strategy.laws <= kept]
    rules = [
        e.name
        for e in registry.strategies(Role.ACCEPTANCE)
        if e.strategy.lossless and drawn <= e.strategy.laws
    ]
    raise _incompatible(
        resolved,
        Role.TREE,
        f"{tree} draws siblings by {_names(drawn)}, but {rule} keeps the target's distribution "
        f"only under {_names(kept)}, so the output would silently change. Use a tree builder "
        f"that keeps to {_names(kept)} (always do: {', '.join(trees) or 'none is installed'}) "
        f"or a rule for {_names(drawn)} ({', '.join(rules) or 'none is installed'})",
    )


def _names(laws: frozenset[Law]) -> str:
    return ", ".join(sorted(law.value for law in laws)) or "no law"


def _check_features(resolved: Resolved, target: TargetInfo) -> None:
    head, features = resolved.strategies[Role.HEAD], resolved.strategies[Role.FEATURES]
    if head.name == NONE:
        return
    needed = _guarded(head, "feature_size()", lambda: resolved.head.feature_size(target))
    given = _guarded(features, "feature_size()", lambda: resolved.features.feature_size(target))
    if needed != given:
        raise _incompatible(
            resolved,
            Role.FEATURES,
            f"{features} makes features of size {given} from the target {target.name!r}, but "
            f"{head} needs {needed}; choose the extractor that the head was trained with",
        )


def _incompatible(resolved: Resolved, role: Role, problem: str) -> IncompatibleError:
    return IncompatibleError(resolved.spec.document.sentence((role.value,), problem))
