"""What goes with what: built components whose declarations exclude each other are refused.

Knows what components declare; knows none of them by name, but the one that drafts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eagle.errors import IncompatibleError
from eagle.plugin import (
    FollowsLayers,
    Law,
    LimitedDepth,
    MeasuredHead,
    NamesLayers,
    NeedsTopology,
    OfferingHead,
    Registry,
    Role,
    TargetInfo,
    TreeBuilder,
    TreeShape,
    VaryingTree,
    listed,
)
from eagle.spec.blame import guarded
from eagle.spec.components import declared
from eagle.spec.resolved import Resolved

__all__ = ["NONE", "check", "fit_to", "follow_layers"]

NONE = "none"
"""In the roles head and tree, the strategy that drafts nothing."""


def check(resolved: Resolved, registry: Registry) -> None:
    """Check that components go together, whatever the target.

    Args:
        resolved: the components.
        registry: where others are found that would go with them.

    Raises:
        IncompatibleError: they do not, and what would.
    """
    _check_pairing(resolved)
    _check_laws(resolved, registry)
    _check_topology(resolved)


def fit_to(target: TargetInfo, resolved: Resolved) -> Resolved:
    """Return components as they are for a target, after checking that they go together there.

    Raises:
        IncompatibleError: they do not.
        CheckpointError: the head was made for another target.
    """
    resolved = follow_layers(resolved, target)
    _check_features(resolved, target)
    _check_depth(resolved)
    return resolved


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
    named = guarded(head, "feature_layers()", lambda: component.feature_layers(target))
    if named is None:
        return resolved
    extractor = resolved.features
    if isinstance(extractor, FollowsLayers):
        following = extractor.following
        extractor = guarded(features, "following()", lambda: following(named))
    if tuple(extractor.layers) != tuple(named):
        given = ", ".join(map(str, extractor.layers)) or "the last alone"
        raise _incompatible(
            resolved,
            Role.FEATURES,
            f"{head} joins the hidden states {', '.join(map(str, named))} of the target, but "
            f"{features} takes {given}; use `features: layers`, which follows the head",
        )
    return replace(resolved, features=extractor)


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
    most = guarded(head, "deepest_level()", component.deepest_level)
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


def _check_features(resolved: Resolved, target: TargetInfo) -> None:
    head, features = resolved.strategies[Role.HEAD], resolved.strategies[Role.FEATURES]
    if head.name == NONE:
        return
    needed = guarded(head, "feature_size()", lambda: resolved.head.feature_size(target))
    given = guarded(features, "feature_size()", lambda: resolved.features.feature_size(target))
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
