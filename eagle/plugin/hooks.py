"""The hooks by which a plug-in provides strategies: one per role, called once per process.

A plug-in is a module or object named by an entry point of the group ``eagle.plugins``:

    [project.entry-points."eagle.plugins"]
    my-trees = "my_package.plugin"

and implements any of these hooks with `hookimpl`:

    from eagle.plugin import hookimpl

    @hookimpl
    def eagle_tree_builders():
        return [Strategy(name="mine", config=MyConfig, build=MyTree, description="...")]

A hook names factories; nothing is built until a spec selects it, and no hook runs in a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from eagle.plugin.roles import (
    AcceptanceRule,
    AttentionBackend,
    DraftHead,
    FeatureExtractor,
    Role,
    Strategy,
    TreeBuilder,
)
from eagle.plugin.training_loss import TrainingLoss

__all__ = ["ENTRY_POINT_GROUP", "HOOKS", "EagleHooks", "hookimpl"]

ENTRY_POINT_GROUP = "eagle.plugins"

hookspec = pluggy.HookspecMarker("eagle")
hookimpl = pluggy.HookimplMarker("eagle")


class EagleHooks:
    """The hook specifications; each returns the strategies that a plug-in provides for a role."""

    @hookspec
    def eagle_feature_extractors(self) -> Iterable[Strategy[FeatureExtractor]]:  # type: ignore[empty-body]
        """Return feature extractors: which hidden states the draft head sees."""

    @hookspec
    def eagle_draft_heads(self) -> Iterable[Strategy[DraftHead]]:  # type: ignore[empty-body]
        """Return draft heads: what comes next, given features and the shifted tokens."""

    @hookspec
    def eagle_tree_builders(self) -> Iterable[Strategy[TreeBuilder]]:  # type: ignore[empty-body]
        """Return tree builders: which candidates are drafted, in what shape."""

    @hookspec
    def eagle_attention_backends(self) -> Iterable[Strategy[AttentionBackend]]:  # type: ignore[empty-body]
        """Return attention backends: how a token tree is attended over the cache."""

    @hookspec
    def eagle_acceptance_rules(self) -> Iterable[Strategy[AcceptanceRule]]:  # type: ignore[empty-body]
        """Return acceptance rules: which path is kept, and which token follows."""

    @hookspec
    def eagle_training_losses(self) -> Iterable[Strategy[TrainingLoss]]:  # type: ignore[empty-body]
        """Return losses of training: what a draft head is taught by."""


HOOKS = {
    Role.FEATURES: "eagle_feature_extractors",
    Role.HEAD: "eagle_draft_heads",
    Role.TREE: "eagle_tree_builders",
    Role.ATTENTION: "eagle_attention_backends",
    Role.ACCEPTANCE: "eagle_acceptance_rules",
    Role.LOSS: "eagle_training_losses",
}
