"""Trees whose shape is fixed and whose candidates are the head's; knows a drafter, no model."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, StrictInt, model_validator

from eagle.plugin import (
    Budget,
    BuildContext,
    Drafter,
    Draws,
    Fit,
    IncompatibleError,
    Law,
    SpecError,
    Strategy,
    StrategyConfig,
    TokenTree,
    TreeBuilder,
    TreeShape,
)
from eagle_plugins.trees.drawing import draw_level, likeliest
from eagle_plugins.trees.indices import TreeIndex
from eagle_plugins.trees.named import AUTO, fitting, paths_of
from eagle_plugins.trees.sizes import Size, static_options
from eagle_plugins.trees.topology import Topology

__all__ = ["STATIC", "SamplingLaw", "StaticConfig", "StaticTree"]

SamplingLaw = Annotated[
    Literal["top-k", "without-replacement"],
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
    size: Size = None
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
        if self.size is not None and (self.tree, self.branching) != (None, None):
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


class StaticTree:
    """Fill a fixed topology with the head's candidates.

    At temperature 0, and under the law `top-k`, a node's children are the continuations of the
    ranks that its topology names. Under `without-replacement` they are drawn from the draft
    distribution one after another (EAGLE, arXiv 2401.15077, appendix on sampling); a child drawn
    from a distribution that has nothing left is padding. A batch may mix both.

    Raises:
        SpecError: ranks are skipped under a sampled law, in which siblings have no ranks to skip.
    """

    capturable = True

    def __init__(self, topology: Topology, sampling: Law = Law.WITHOUT_REPLACEMENT) -> None:
        if not sampling.fixed and topology.skipped is not None:
            path = list(topology.skipped)
            raise SpecError(
                f"path {path} skips rank {path[-1] - 1}, but under 'sampling: {sampling}' siblings "
                f"are drawn in turn: add {[*path[:-1], path[-1] - 1]}, or use 'sampling: top-k'"
            )
        self.topology = topology
        self.sampling = sampling
        self._indices: dict[torch.device, TreeIndex] = {}

    @property
    def laws(self) -> frozenset[Law]:
        """See `eagle.plugin.TreeBuilder`; top-k is always among them, for temperature 0."""
        return frozenset({Law.TOP_K, self.sampling}) if self.topology.depth else frozenset()

    @property
    def uniforms(self) -> int:
        """See `eagle.plugin.TreeBuilder`: one for each drafted node, under a sampled law."""
        return 0 if self.sampling.fixed else self.topology.nodes - 1

    @property
    def shape(self) -> TreeShape:
        """See `eagle.plugin.TreeBuilder`."""
        inner = len(self.topology.inner)
        return TreeShape(
            nodes=self.topology.nodes,
            depth=self.topology.depth,
            siblings=self.topology.siblings,
            expansions=max(inner - 1, 0),
            distributions=0 if self.sampling.fixed else inner,
        )

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one tree per slot, level by level.

        Raises:
            IncompatibleError: a node's rank is not below the size of the vocabulary.
        """
        index = self._index(drafter.root.device)
        slots = drafter.root.shape[0]
        sampled = None
        if not self.sampling.fixed and not drafter.sampling.greedy:
            sampled = drafter.sampling.temperature > 0

        tokens = [drafter.root[:, None]]
        exist = [torch.ones_like(tokens[0], dtype=torch.bool)]
        drafts = []
        for depth, level in enumerate(index.levels):
            inner = tokens[-1].index_select(1, level.parents)
            logits = (
                drafter.expand(inner, level.above.expand(slots, -1)) if depth else drafter.begin()
            )
            self.check_vocab(logits.shape[-1])
            if sampled is None:
                tokens.append(likeliest(level, logits))
                continue
            drawn, possible, probs = draw_level(level, logits, drafter.sampling, exist[-1], draws)
            tokens.append(drawn)
            exist.append(possible)
            drafts.append(probs)

        parents = index.parents.expand(slots, -1)
        ancestors = index.ancestors.expand(slots, -1, -1)
        if drafts:
            real = torch.cat(exist, 1)
            parents = parents.where(real, -1)
            # Padding sees itself alone: a row without any key would make its attention NaN.
            alone = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
            ancestors = ancestors.where(real[:, :, None], alone)
        return TokenTree(
            tokens=torch.cat(tokens, 1),
            parents=parents,
            depths=index.depths.expand(slots, -1),
            ranks=index.ranks.expand(slots, -1),
            ancestors=ancestors,
            draft_probs=torch.cat(drafts, 1) if drafts else None,
            draft_rows=index.draft_rows.expand(slots, -1) if drafts else None,
            sampled=sampled if drafts else None,
            law=self.sampling if drafts else Law.TOP_K,
        )

    def check_vocab(self, vocab: int) -> None:
        """Raise `IncompatibleError` where a rank is not below the size of the vocabulary."""
        highest = self.topology.highest_rank
        if highest >= vocab:
            raise IncompatibleError(
                f"the tree has a node of rank {highest}, but the vocabulary that is drafted from "
                f"has only {vocab} tokens, ranks 0 to {vocab - 1}"
            )

    def _index(self, device: torch.device) -> TreeIndex:
        """Return the index tensors on a device; made once, before any cycle is captured."""
        if device not in self._indices:
            self._indices[device] = TreeIndex.of(self.topology, device)
        return self._indices[device]


class FittedStatic(StaticTree):
    """A static tree of the size that fits the machine; until that is known, the `auto` tree."""

    def __init__(self, config: StaticConfig, context: BuildContext) -> None:
        super().__init__(config.topology(context.device), Law.named(config.sampling))
        self._config, self._context = config, context
        if context.target is not None:
            self.check_vocab(context.target.vocab_size)

    def fit(self, budget: Budget) -> Fit[StaticTree] | None:
        """See `eagle.plugin.FittedTree`: the best number of the likeliest paths."""
        given = self._config.model_dump(include={"sampling"}, exclude_unset=True)
        return Fit.best(
            static_options(budget, given),
            lambda option: build_checked(
                Topology.from_paths(option.settings["tree"]), self._config.sampling, self._context
            ),
        )


def _build(config: StaticConfig, context: BuildContext) -> StaticTree:
    if config.size is not None:
        return FittedStatic(config, context)
    return build_checked(config.topology(context.device), config.sampling, context)


def build_checked(
    topology: Topology, sampling: Literal["top-k", "without-replacement"], context: BuildContext
) -> StaticTree:
    """Return a builder that fits the target, if that is known.

    Raises:
        IncompatibleError: the target's vocabulary is smaller than a node's rank asks for.
    """
    tree = StaticTree(topology, Law.named(sampling))
    if context.target is not None:
        tree.check_vocab(context.target.vocab_size)
    return tree


STATIC: Strategy[TreeBuilder] = Strategy(
    name="static",
    config=StaticConfig,
    build=_build,
    description="a fixed topology by name, paths or branching; top-k or sampled candidates",
)
