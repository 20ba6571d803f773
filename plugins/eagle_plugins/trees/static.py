"""The settings of trees whose shape is fixed; what assembles them is `eagle.plugin.StaticTree`."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, StrictInt, model_validator

from eagle.plugin import (
    Budget,
    BuildContext,
    Fit,
    Law,
    Option,
    RankRates,
    SpecError,
    StaticTree,
    Strategy,
    StrategyConfig,
    Topology,
    TreeBuilder,
)
from eagle_plugins.trees.following import FollowingTree
from eagle_plugins.trees.named import AUTO, fitting, paths_of
from eagle_plugins.trees.narrowing import NarrowingTree
from eagle_plugins.trees.sizes import SizeBySlots, static_options

__all__ = ["STATIC", "SamplingLaw", "StaticConfig"]

SamplingLaw = Annotated[
    Literal["top-k", "without-replacement", "shared-noise"],
    Field(description="how candidates are chosen at temperature > 0; at 0 it is always top-k"),
]


class StaticConfig(StrategyConfig):
    """Settings of `static`: a tree by name or paths, or its branching, or its size; else `auto`."""

    tree: Annotated[
        str | tuple[tuple[StrictInt, ...], ...] | None,
        Field(description="a tree's name, `auto`, or paths such as [[0], [1], [0, 0]]"),
    ] = None
    branching: Annotated[
        tuple[StrictInt, ...] | None, Field(description="children of every node, level by level")
    ] = None
    size: SizeBySlots = None
    sampling: SamplingLaw = "without-replacement"

    def topology(self, device: torch.device | None = None) -> Topology:
        """Return the tree's shape; `auto` depends on the device.

        Raises:
            SpecError: it is impossible.
        """
        if self.branching is not None:
            return Topology.from_branching(self.branching)
        tree = AUTO if self.tree is None else self.tree
        tree = fitting(device) if tree == AUTO else tree
        return Topology.from_paths(paths_of(tree) if isinstance(tree, str) else tree)

    @model_validator(mode="after")
    def _possible(self) -> StaticConfig:
        if self.size == "auto" and (self.tree, self.branching) != (None, None):
            given = "tree" if self.tree is not None else "branching"
            raise ValueError(
                f"'size: {self.size}' chooses the paths itself, so it goes with neither 'tree' nor "
                f"'branching': leave out either 'size' or {given!r}"
            )
        if self.tree not in (None, AUTO) and self.branching is not None:
            raise ValueError(
                "give either 'tree' (a name such as reference-25, or a list of paths) "
                "or 'branching' (such as [4, 2, 1]), not both"
            )
        try:
            StaticTree(self.topology(), Law.named(self.sampling))
        except SpecError as error:
            # pydantic adds the key and the file's place to a ValueError only.
            raise ValueError(str(error)) from None
        return self


class FittedStatic(StaticTree):
    """A static tree of the size that fits the machine; until that is known, the `auto` tree."""

    def __init__(self, config: StaticConfig, context: BuildContext) -> None:
        super().__init__(config.topology(context.device), Law.named(config.sampling))
        self._config, self._context = config, context
        if context.target is not None:
            self.check_vocab(context.target.vocab_size)

    def fit(self, budget: Budget) -> Fit[TreeBuilder] | None:
        """See `eagle.plugin.FittedTree`: the best number of the likeliest paths.

        Under the law of shared noise it follows the number of slots from there.
        """
        given = self._config.model_dump(include={"sampling"}, exclude_unset=True)
        return Fit.best(static_options(budget, given), lambda option: self._fitted(option, budget))

    def _fitted(self, option: Option, budget: Budget) -> TreeBuilder:
        paths = option.settings["tree"]
        tree = build_checked(Topology.from_paths(paths), self._config.sampling, self._context)
        if tree.sampling != Law.SHARED_NOISE:
            return tree
        few = is_cuda(self._context.device)
        following = FollowingTree(tree.topology, budget.rates, few=few)
        following.learn(1, budget.costs)
        return following


class StaticAuto(StaticTree):
    """The tree of a GPU where the spec names none: it gives way to smaller ones for many slots."""

    def follow(self, rates: RankRates) -> NarrowingTree:
        """See `eagle.plugin.FollowsSlots`."""
        return NarrowingTree(self.topology, self.sampling, rates)


class StaticBySlots(StaticTree):
    """A static tree for one slot, which gives way to smaller ones for several.

    Args:
        topology: of that tree.
        few: as for `FollowingTree`.
    """

    def __init__(self, topology: Topology, *, few: bool) -> None:
        super().__init__(topology, Law.SHARED_NOISE)
        self._few = few

    def follow(self, rates: RankRates) -> FollowingTree:
        """See `eagle.plugin.FollowsSlots`."""
        return FollowingTree(self.topology, rates, few=self._few)


def _build(config: StaticConfig, context: BuildContext) -> StaticTree:
    if config.size == "auto":
        return FittedStatic(config, context)
    topology, law, gpu = config.topology(context.device), config.sampling, is_cuda(context.device)
    # By any other law a text would depend on how many share the batch.
    if config.size == "by-slots" and law == Law.SHARED_NOISE.name:
        return _checked(StaticBySlots(topology, few=gpu), context)
    if gpu and config.size is None and config.tree in (None, AUTO) and config.branching is None:
        return _checked(StaticAuto(topology, Law.named(law)), context)
    return build_checked(topology, law, context)


def is_cuda(device: torch.device | None) -> bool:
    """Return whether a device is a GPU, where what drafts a tree is compiled for it."""
    return device is not None and device.type == "cuda"


def build_checked(topology: Topology, sampling: str, context: BuildContext) -> StaticTree:
    """Return a builder that fits the target, if that is known.

    Raises:
        IncompatibleError: the target's vocabulary is smaller than a node's rank asks for.
    """
    return _checked(StaticTree(topology, Law.named(sampling)), context)


def _checked(tree: StaticTree, context: BuildContext) -> StaticTree:
    if context.target is not None:
        tree.check_vocab(context.target.vocab_size)
    return tree


STATIC: Strategy[TreeBuilder] = Strategy(
    name="static",
    config=StaticConfig,
    build=_build,
    description="a fixed topology by name, paths or branching; top-k or sampled candidates",
)
