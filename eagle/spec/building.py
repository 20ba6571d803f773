"""Decoder specs: YAML to checked models to built components; loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from eagle.errors import (
    EagleError,
    IncompatibleError,
    PluginError,
    SpecError,
    brief,
    clipped,
    nearest,
)
from eagle.host import expanded
from eagle.plugin import (
    ROLE_TITLES,
    ROLES,
    AcceptanceRule,
    AttentionBackend,
    Breach,
    BuildContext,
    Component,
    DraftHead,
    FeatureExtractor,
    FollowsLayers,
    Law,
    LimitedDepth,
    MeasuredHead,
    NamesLayers,
    NeedsTopology,
    OfferingHead,
    Registered,
    Registry,
    Role,
    StrategyConfig,
    TargetInfo,
    TrainingLoss,
    TreeBuilder,
    TreeShape,
    VaryingTree,
    describe,
    listed,
)
from eagle.spec.document import Document
from eagle.spec.schema import (
    DEFAULT_STRATEGIES,
    ComponentSpec,
    DecoderSpec,
    RuntimeSpec,
    TargetSpec,
    json_schema,
)

__all__ = [
    "NONE",
    "ComponentSpec",
    "Declared",
    "DecoderSpec",
    "Resolved",
    "RuntimeSpec",
    "TargetSpec",
    "built",
    "declared",
    "follow_layers",
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
    Role.LOSS: TrainingLoss,
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
        return {role: getattr(self, role.value) for role in ROLES}

    def blame(self, error: BaseException) -> PluginError | None:
        """Return an error that names the component in which an exception arose, if one did.

        An exception of the loop may come of what a component returned, so it names the components
        that are of other distributions. None where there is nobody but this package.

        Reading the traceback costs nothing until something is raised, unlike a wrapper around
        every call that the loop makes.
        """
        if isinstance(error, Breach):
            entry = self.strategies[error.role]
            return PluginError(f"{entry}, {entry.origin}: {error.problem}")
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
    context = replace(context, builder=partial(_nested, spec.document, registry))
    # Names first, then settings, so that a wrong name shows before a wrong setting of another.
    strategies = {
        role: _lookup(spec.document, registry, role, spec.component(role)) for role in ROLES
    }
    configs = {
        role: _configure(spec.document, strategies[role], spec.component(role)) for role in ROLES
    }
    made = {role: _build(strategies[role], configs[role], context) for role in ROLES}
    resolved = Resolved(spec, strategies, **{role.value: made[role] for role in ROLES})
    _check_pairing(resolved)
    _check_laws(resolved, registry)
    _check_topology(resolved)
    if context.target is not None:
        resolved = follow_layers(resolved, context.target)
        _check_features(resolved, context.target)
        _check_depth(resolved)
    return resolved


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
    entry = _lookup(document, registry, role, component)
    config = _configure(document, entry, component)
    return entry, config, _build(entry, config, context)


def _nested(
    document: Document,
    registry: Registry,
    role: Role,
    component: ComponentSpec,
    context: BuildContext,
) -> Any:
    return built(document, registry, role, component, context)[2]


def _lookup(
    document: Document, registry: Registry, role: Role, component: ComponentSpec
) -> Registered:
    try:
        return registry.get(role, component.name)
    except PluginError as error:
        place = document.place((role.value, "name"))
        raise type(error)(f"{place}: {role.value}: {error}") from error.__cause__


def _configure(document: Document, entry: Registered, component: ComponentSpec) -> StrategyConfig:
    return _guarded(
        entry,
        "its config",
        lambda: document.validate(entry.strategy.config, component.settings, (entry.role.value,)),
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
        component = _build(entry, entry.strategy.config(), BuildContext())
        rule = entry.role is Role.ACCEPTANCE
        return Declared(component.laws, bool(component.lossless) if rule else None)
    except Exception:  # a plug-in's code; who selects it is told what is wrong with it
        return None


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


def _shapes(tree: TreeBuilder) -> list[TreeShape]:
    """Return the shapes of all trees that a builder may make."""
    if isinstance(tree, VaryingTree):
        return [tree.shape, *(other.shape for other in tree.alternatives)]
    return [tree.shape]


def _check_pairing(resolved: Resolved) -> None:
    depth = max(shape.depth for shape in _shapes(resolved.tree))
    if resolved.strategies[Role.HEAD].name == NONE and depth > 0:
        raise _incompatible(
            resolved,
            Role.TREE,
            f"{resolved.strategies[Role.TREE]} drafts {depth} levels, but the head "
            f"{NONE!r} drafts nothing; use `tree: {NONE}` with it, or another head",
        )
    trees = (
        resolved.tree.alternatives if isinstance(resolved.tree, VaryingTree) else [resolved.tree]
    )
    by_offer = any(getattr(one, "offered", False) for one in trees)
    if by_offer and not isinstance(resolved.head, OfferingHead):
        raise _incompatible(
            resolved,
            Role.TREE,
            f"{resolved.strategies[Role.TREE]} goes by what a head says that it has candidates "
            f"for, but {resolved.strategies[Role.HEAD]} says nothing of that; use it with a head "
            "that looks text up, or name the tree to draft always",
        )


def _check_laws(resolved: Resolved, registry: Registry) -> None:
    tree, rule = resolved.strategies[Role.TREE], resolved.strategies[Role.ACCEPTANCE]
    drawn, kept = resolved.tree.laws, resolved.acceptance.laws
    if isinstance(resolved.tree, VaryingTree):
        drawn = drawn.union(*(other.laws for other in resolved.tree.alternatives))
        _check_noise(resolved, resolved.tree.alternatives)
    if not resolved.lossless or _keeps(kept, drawn):
        return
    others = [(e.name, e.role, declared(e)) for e in registry.strategies()]
    trees = [n for n, role, own in others if role is Role.TREE and own and _keeps(kept, own.laws)]
    rules = [n for n, _, own in others if own and own.lossless and _keeps(own.laws, drawn)]
    raise _incompatible(
        resolved,
        Role.TREE,
        f"{tree} draws siblings by {listed(drawn)}, but {rule} keeps the target's distribution "
        f"only under {listed(kept)}, so the output would silently change. Use a tree builder "
        f"that keeps to {listed(kept)} (by default: {', '.join(trees) or 'none is installed'}) "
        f"or a rule for {listed(drawn)} ({', '.join(rules) or 'none is installed'})",
    )


def _check_noise(resolved: Resolved, trees: Sequence[TreeBuilder]) -> None:
    """Refuse trees of which some cycles draw by a text's noise and others do not.

    Where a cycle ends may follow from the noise of the position behind it; if that decides whether
    the noise is used there, what is drawn is no longer independent of it.
    """
    racing = [Law.SHARED_NOISE in _laws_of(tree) for tree in trees]
    if any(racing) and not all(racing):
        raise _incompatible(
            resolved,
            Role.TREE,
            f"of the trees that {resolved.strategies[Role.TREE]} takes in turn some draw by "
            f"{Law.SHARED_NOISE} and others do not, which would change the output; give all of "
            f"them `sampling: {Law.SHARED_NOISE}` (in place of `tree: none`, a static tree of one "
            "small branch), or none of them",
        )


def _laws_of(tree: TreeBuilder) -> frozenset[Law]:
    """Return the laws of a builder; of a tree that is its root alone, that of what follows it."""
    own = getattr(tree, "sampling", None)
    return tree.laws | ({own} if isinstance(own, Law) else frozenset())


def _keeps(kept: frozenset[Law], drawn: frozenset[Law]) -> bool:
    # Not as sets: `EVERY_LAW` has laws that it cannot list.
    return all(law in kept for law in drawn)


def _check_depth(resolved: Resolved) -> None:
    head, component = resolved.strategies[Role.HEAD], resolved.head
    if not isinstance(component, LimitedDepth):
        return
    most = _guarded(head, "deepest_level()", component.deepest_level)
    depth = max(shape.depth for shape in _shapes(resolved.tree))
    if most is not None and depth > most:
        raise _incompatible(
            resolved,
            Role.TREE,
            f"{resolved.strategies[Role.TREE]} is {depth} levels deep, but {head} drafts {most} at "
            "most; use a tree that is less deep",
        )


def _check_topology(resolved: Resolved) -> None:
    rule = resolved.acceptance
    if not isinstance(rule, NeedsTopology) or rule.topology != "chain":
        return
    widest = max(shape.siblings for shape in _shapes(resolved.tree))
    if widest > 1:
        raise _incompatible(
            resolved,
            Role.ACCEPTANCE,
            f"{resolved.strategies[Role.ACCEPTANCE]} is for chains, one candidate per level, but "
            f"{resolved.strategies[Role.TREE]} gives a node up to {widest} children; use a tree "
            "that is a chain (`tree: chain`), or a rule for trees (`acceptance: speculative`)",
        )


def follow_layers(resolved: Resolved, target: TargetInfo) -> Resolved:
    """Have the extractor join the layers that the head names, if it names some.

    Raises:
        IncompatibleError: the spec's extractor joins other layers.
        CheckpointError: the head was made for another target.
    """
    head, features = resolved.strategies[Role.HEAD], resolved.strategies[Role.FEATURES]
    component = resolved.head
    if not isinstance(component, NamesLayers):
        return resolved
    named = _guarded(head, "feature_layers()", lambda: component.feature_layers(target))
    if named is None:
        return resolved
    extractor = resolved.features
    if isinstance(extractor, FollowsLayers):
        following = extractor.following
        extractor = _guarded(features, "following()", lambda: following(named))
    if tuple(extractor.layers) != tuple(named):
        given = ", ".join(map(str, extractor.layers)) or "the last alone"
        raise _incompatible(
            resolved,
            Role.FEATURES,
            f"{head} joins the hidden states {', '.join(map(str, named))} of the target, but "
            f"{features} takes {given}; use `features: layers`, which follows the head",
        )
    return replace(resolved, features=extractor)


def _check_features(resolved: Resolved, target: TargetInfo) -> None:
    head, features = resolved.strategies[Role.HEAD], resolved.strategies[Role.FEATURES]
    if head.name == NONE:
        return
    needed = _guarded(head, "feature_size()", lambda: resolved.head.feature_size(target))
    given = _guarded(features, "feature_size()", lambda: resolved.features.feature_size(target))
    if needed != given:
        # What has no files was not trained.
        trained = isinstance(resolved.head, MeasuredHead)
        raise _incompatible(
            resolved,
            Role.FEATURES,
            f"{features} makes features of size {given} from the target {target.name!r}, but "
            f"{head} needs {needed}; choose "
            + (
                "the extractor that the head was trained with"
                if trained
                else f"an extractor that makes features of size {needed}"
            ),
        )


def _incompatible(resolved: Resolved, role: Role, problem: str) -> IncompatibleError:
    return IncompatibleError(resolved.spec.document.sentence((role.value,), problem))
