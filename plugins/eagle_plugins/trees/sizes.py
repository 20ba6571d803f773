"""The sizes that trees may have, with what each is expected to bring; knows rates and costs only.

Expected tokens take the head's mean acceptance for every text alike: what a tree gains by following
the head's confidence is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from eagle.plugin import Budget, Option

__all__ = ["WIDTHS", "Size", "SizeBySlots", "dynamic_options", "static_options"]

Size = Annotated[
    Literal["auto"] | None,
    Field(description="`auto`: the size with the most expected tokens per second on this machine"),
]

SizeBySlots = Annotated[
    Literal["auto", "by-slots"] | None,
    Field(
        description="`auto`: the size with the most expected tokens per second on this machine; "
        "`by-slots`: the tree that is given, or a smaller one while several requests are decoded, "
        "as pays then (with `sampling: shared-noise`, which does it for `auto` too)"
    ),
]

WIDTHS = (1, 2, 3, 4, 6, 8, 10)
"""What `top_k` of a dynamic tree is chosen from."""


def static_options(budget: Budget, given: Mapping[str, Any] | None = None) -> Iterator[Option]:
    """Yield, for every number of nodes and levels, the tree of the likeliest rank paths.

    Args:
        budget: what to choose by.
        given: settings that every option has.
    """
    rates, costs = budget.rates, budget.costs
    for depth in range(1, len(rates.levels) + 1):
        paths, tokens, deepest = [], 1.0, 0
        extended = [0] * (depth - 1)
        for path, probability in rates.likeliest(costs.verify.largest - 1, depth):
            paths.append(path)
            tokens += probability
            deepest = max(deepest, len(path))
            if len(path) > 1 and path[-1] == 0:  # the first child of a node: siblings come in order
                extended[len(path) - 2] += 1
            if deepest == depth:  # else it is a tree of fewer levels
                nodes = len(paths) + 1
                tree = [list(path) for path in sorted(paths, key=_breadth_first)]
                settings = {"tree": tree, **(given or {})}
                yield Option(nodes, depth, tokens, costs.cycle(nodes, extended), settings)


def _breadth_first(path: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(path), path


def dynamic_options(budget: Budget, widths: Sequence[int]) -> Iterator[Option]:
    """Yield, for each width, number of levels and of nodes, the dynamic tree of that size.

    What it drafts and keeps is worked out as if the draft probabilities of every cycle were the
    head's mean acceptance.

    Args:
        budget: what to choose by.
        widths: values of `top_k`.
    """
    costs = budget.costs
    for width in widths:
        level, pool = [1.0], list[float]()
        for depth, measured in enumerate(budget.rates.levels, start=1):
            # Ranks that were not measured are taken never to be right.
            ranks = [*measured[:width], *[0.0] * (width - len(measured))]
            expanded = sorted(level, reverse=True)[:width]
            level = [above * rank for above in expanded for rank in ranks]
            pool = sorted([*pool, *level], reverse=True)
            fewest, most = max(depth, width), min(len(pool), costs.verify.largest - 1)
            for nodes in range(fewest, most + 1):
                yield Option(
                    nodes=nodes + 1,
                    depth=depth,
                    tokens=1 + sum(pool[:nodes]),
                    milliseconds=costs.cycle(nodes + 1, [width] * (depth - 1)),
                    settings={"nodes": nodes, "depth": depth, "top_k": width},
                )
