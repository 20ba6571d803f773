"""A tree only where the head has something to say: knows what was offered, not by whom.

Whoever looks text up has nothing to propose most of the time, and verifying padding costs as much
as verifying candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from eagle.plugin import (
    BuildContext,
    ComponentSpec,
    Drafter,
    Draws,
    Law,
    Role,
    Seen,
    SpecError,
    Strategy,
    StrategyConfig,
    TokenTree,
    TreeBuilder,
    TreeShape,
    VaryingTree,
)

__all__ = ["OFFERED", "Offered", "OfferedConfig"]

_SHORT = ComponentSpec(name="chain", depth=4, sampling="top-k")
_LONG = ComponentSpec(name="chain", depth=10, sampling="top-k")


class OfferedConfig(StrategyConfig):
    """Settings of `offered`."""

    of: Annotated[
        tuple[ComponentSpec, ...],
        Field(min_length=1, description="a tree, or several of which the deepest useful is taken"),
    ] = (_SHORT, _LONG)
    otherwise: Annotated[
        ComponentSpec, Field(description="the tree of cycles for which too little is offered")
    ] = ComponentSpec(name="none")
    share: Annotated[
        float, Field(gt=0, le=1, description="of the active slots, those that must be offered any")
    ] = 0.5

    @field_validator("of", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list | tuple) else (value,)


class Offered:
    """One of a few trees by how much the head offers, and another one where that is nothing.

    All slots of a batch have one shape, so how many of them are offered something decides for all.
    """

    def __init__(self, config: OfferedConfig, context: BuildContext) -> None:
        otherwise = context.build(Role.TREE, config.otherwise)
        trees = [context.build(Role.TREE, one) for one in config.of]
        for spec, tree in zip((config.otherwise, *config.of), (otherwise, *trees), strict=True):
            if isinstance(tree, VaryingTree):
                raise SpecError(
                    f"the tree {spec.name!r} within 'offered' is of varying shape itself; use one "
                    "of a fixed shape"
                )
        trees.sort(key=lambda tree: tree.shape.depth)
        self._depths: list[int] = [tree.shape.depth for tree in trees]
        self._share = config.share
        self.alternatives: Sequence[TreeBuilder] = [otherwise, *map(_Taken, trees)]
        self._usual = self.alternatives[1]

    @property
    def capturable(self) -> bool:
        """Whether all of its trees are."""
        return all(one.capturable for one in self.alternatives)

    @property
    def shape(self) -> TreeShape:
        """See `eagle.plugin.VaryingTree`: of the smallest tree of what is offered."""
        return self._usual.shape

    @property
    def laws(self) -> frozenset[Law]:
        """Those of all its trees."""
        return frozenset[Law]().union(*(one.laws for one in self.alternatives))

    @property
    def uniforms(self) -> int:
        """See `eagle.plugin.TreeBuilder`."""
        return self._usual.uniforms

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """See `eagle.plugin.TreeBuilder`."""
        return self._usual.build(drafter, draws)

    def choose(self, seen: Seen) -> int:
        """Return 0 where too few slots are offered anything, else the deepest tree of use."""
        levels = [count for count in seen.offered if count is not None]
        some = [count for count in levels if count > 0]
        if not some or len(some) < self._share * len(levels):
            return 0
        return max(1, sum(depth <= max(some) for depth in self._depths))


class _Taken:
    """A tree of which the head is told that it takes what was offered alone."""

    offered = True

    def __init__(self, builder: TreeBuilder) -> None:
        self._builder = builder

    @property
    def capturable(self) -> bool:
        return self._builder.capturable

    @property
    def shape(self) -> TreeShape:
        return self._builder.shape

    @property
    def laws(self) -> frozenset[Law]:
        return self._builder.laws

    @property
    def uniforms(self) -> int:
        return self._builder.uniforms

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        return self._builder.build(drafter, draws)


OFFERED: Strategy[TreeBuilder] = Strategy(
    name="offered",
    config=OfferedConfig,
    build=Offered,
    description="a tree where the head has something to propose, another or none where not",
)
