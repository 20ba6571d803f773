"""Trees whose shape follows the draft head's confidence; knows a drafter, no model.

EAGLE-2 (arXiv 2406.16858, section 4): the *value* of a candidate is the product of the draft
probabilities on its path, which estimates how likely the target is to accept all of it. Level by
level the candidates of highest value are expanded, and at the end those of highest value overall
are kept. So every slot has another topology in every cycle, of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from eagle.plugin import (
    MAX_NODES,
    Budget,
    BuildContext,
    Drafter,
    Draws,
    Fit,
    IncompatibleError,
    Law,
    Strategy,
    StrategyConfig,
    TokenTree,
    TreeBuilder,
    TreeShape,
    ancestor_mask,
    top_k,
)
from eagle_plugins.trees.sizes import WIDTHS, Size, dynamic_options

__all__ = ["DYNAMIC", "DynamicConfig", "DynamicTree"]


class DynamicConfig(StrategyConfig):
    """Settings of `dynamic`; the defaults are for a GPU, where 60 candidates are nearly free.

    As in the paper, `nodes` counts drafted tokens and `depth` levels of them. Its authors' code
    counts otherwise: its ``total_token`` includes the root, its ``depth`` leaves out the first
    level, so their 61 and 5 are 60 and 6 here.
    """

    nodes: Annotated[
        int,
        Field(ge=1, lt=MAX_NODES, strict=True, description="candidates kept, without the root"),
    ] = 60
    depth: Annotated[int, Field(ge=1, lt=MAX_NODES, strict=True, description="drafted levels")] = 6
    top_k: Annotated[
        int,
        Field(
            ge=1,
            lt=MAX_NODES,
            strict=True,
            description="nodes expanded on each level, and children drafted under each of them",
        ),
    ] = 10
    size: Size = None

    @property
    def expansions(self) -> int:
        """Drafted nodes that the head extends: `top_k` on every level but the last."""
        return (self.depth - 1) * self.top_k

    @property
    def candidates(self) -> int:
        """Drafted nodes, of which `nodes` are kept: `top_k` under the root and each expansion."""
        return (1 + self.expansions) * self.top_k

    @model_validator(mode="after")
    def _possible(self) -> DynamicConfig:
        sizes = f"depth {self.depth} and top_k {self.top_k}"
        if self.expansions > MAX_NODES:
            raise ValueError(
                f"{sizes} have the draft head extend {self.expansions} nodes in every cycle; "
                f"at most {MAX_NODES} are allowed"
            )
        if self.size is not None:
            if given := sorted({"nodes", "depth"} & self.model_fields_set):
                raise ValueError(
                    f"'size: {self.size}' chooses 'nodes' and 'depth' itself: leave out either "
                    f"'size' or {' and '.join(map(repr, given))}"
                )
            return self
        if self.nodes > self.candidates:
            raise ValueError(
                f"nodes is {self.nodes}, but {sizes} draft only {self.candidates} candidates: "
                "lower nodes, or raise depth or top_k"
            )
        if self.nodes < max(self.depth, self.top_k):
            raise ValueError(
                f"nodes is {self.nodes}, so no tree has more than {self.nodes} levels, nor a node "
                f"more than {self.nodes} children; {sizes} would draft what is never kept: "
                "raise nodes, or lower the larger of them"
            )
        return self

    def provisional(self) -> DynamicConfig:
        """Return the size of a tree that is to fit a machine of which nothing is known yet."""
        nodes = max(min(self.nodes, self.candidates), self.depth, self.top_k)
        return DynamicConfig(nodes=nodes, depth=self.depth, top_k=self.top_k)


@dataclass(frozen=True)
class _Numbering:
    """What follows from a candidate's number; int64 ``[1 + candidates]`` each, on a device.

    The root is candidate 0. Then come its children, and the children of every expanded node, in
    the order of expansion and siblings by value: level by level, so parents before children.

    Attributes:
        depths: levels below the root.
        ranks: order among all drafted siblings.
        above: number of the expanded node above, as `eagle.plugin.Drafter` counts: -1 is the root.
    """

    depths: Tensor
    ranks: Tensor
    above: Tensor

    @classmethod
    def of(cls, config: DynamicConfig, device: torch.device) -> _Numbering:
        drafted = torch.arange(config.candidates, device=device)
        above = drafted // config.top_k - 1
        depths = (above + config.top_k) // config.top_k + 1
        root = drafted.new_zeros(1)
        return cls(
            depths=torch.cat((root, depths)),
            ranks=torch.cat((root, drafted % config.top_k)),
            above=torch.cat((root - 1, above)),
        )


class DynamicTree:
    """Expand the likeliest candidates of each level, then keep the likeliest of all.

    No chance is involved: a node's children depend on the text alone, so acceptance may treat
    them as a fixed set at every temperature (`Law.TOP_K`).
    """

    capturable = True
    laws = frozenset({Law.TOP_K})
    uniforms = 0

    def __init__(self, config: DynamicConfig) -> None:
        self.config = config
        self._numberings: dict[torch.device, _Numbering] = {}

    @property
    def shape(self) -> TreeShape:
        """See `eagle.plugin.TreeBuilder`."""
        config = self.config
        return TreeShape(config.nodes + 1, config.depth, config.top_k, config.expansions)

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one tree per slot.

        Raises:
            IncompatibleError: the vocabulary has fewer than `top_k` tokens.
        """
        numbering = self._numbering(drafter.root.device)
        width, root = self.config.top_k, drafter.root[:, None]
        logits = drafter.begin()
        self.check_vocab(logits.shape[-1])
        certain = logits.new_zeros(root.shape, dtype=_precision(logits))
        token, value = _children(logits, certain, width)
        tokens, values, expanded = [root, token], [certain, value], [torch.zeros_like(root)]
        first = 1  # number of the last level's first candidate
        for _ in range(1, self.config.depth):
            best = _best(value, width)
            number = first + best
            first += value.shape[1]
            logits = drafter.expand(token.gather(1, best), numbering.above[number])
            token, value = _children(logits, value.gather(1, best), width)
            tokens.append(token)
            values.append(value)
            expanded.append(number)

        # In the order of their numbers, as a search for a parent's place needs it.
        kept = _best(torch.cat(values, 1), self.config.nodes + 1).sort(dim=1).values
        depths = numbering.depths[kept]
        over = torch.cat(expanded, 1).gather(1, numbering.above[kept] + 1)
        parents = torch.searchsorted(kept, over).where(depths > 0, -1)
        return TokenTree(
            tokens=torch.cat(tokens, 1).gather(1, kept),
            parents=parents,
            depths=depths,
            # No sibling is kept without those of higher value, so these ranks have no gaps.
            ranks=numbering.ranks[kept],
            ancestors=ancestor_mask(parents, self.config.depth),
        )

    def check_vocab(self, vocab: int) -> None:
        """Raise `IncompatibleError` where a node cannot have `top_k` different children."""
        if self.config.top_k > vocab:
            raise IncompatibleError(
                f"tree.top_k is {self.config.top_k}, but the target's vocabulary has only {vocab} "
                "tokens that can be drafted: a node cannot have more children than that"
            )

    def _numbering(self, device: torch.device) -> _Numbering:
        """Return the index tensors on a device; made once, before any cycle is captured."""
        if device not in self._numberings:
            self._numberings[device] = _Numbering.of(self.config, device)
        return self._numberings[device]


def _precision(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _children(logits: Tensor, above: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest continuations of W nodes, siblings in order of value.

    Draft probabilities are taken at temperature 1 whatever the slot's is, as in EAGLE-2. At
    temperature 0 it is the head's doubt about the target's choice that matters, and dividing by
    the temperature hides it: what the head finds twice as likely would be all that it finds
    possible. Values at temperature 0.5 for answers at 0.5 did worse by 0.2 accepted tokens a
    cycle with 60 nodes (embedded pair); above 1 there was no difference.

    Args:
        logits: ``[B, W, V]``, of what follows each node.
        above: ``[B, W]``, the nodes' own values, as log-probabilities.
        width: how many children each of them gets.

    Returns:
        Tokens, int64 ``[B, W * width]``, and values of the same shape.
    """
    best = top_k(logits, width)[1]
    # Not topk - logsumexp, which is nine kernels unless it is compiled, and stores the
    # vocabulary too; and if it is compiled, a gather from this one stores nothing.
    logprobs = logits.log_softmax(-1, dtype=_precision(logits)).gather(2, best)
    above = above[..., None]
    # No child may come before its parent: neither by a rounding error, nor as NaN, which sorts
    # before everything and which fmin turns into the parent's value.
    return best.flatten(1), torch.fmin(above + logprobs, above).flatten(1)


def _best(values: Tensor, count: int) -> Tensor:
    """Return the places ``[B, count]`` of the highest values; of equal ones, the first.

    A child's value may equal its parent's. As the sort is stable and parents have lower numbers,
    whatever is kept has its parent kept.
    """
    if count == values.shape[1]:
        return torch.arange(count, device=values.device).expand_as(values)
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]


class FittedDynamic(DynamicTree):
    """A dynamic tree of the size that fits the machine; until that is known, a usual one."""

    def __init__(self, config: DynamicConfig, context: BuildContext) -> None:
        super().__init__(config.provisional())
        self._widths: tuple[int, ...] = (config.top_k,)
        if "top_k" not in config.model_fields_set:
            vocab = context.target.vocab_size if context.target else max(WIDTHS)
            self._widths = tuple(width for width in WIDTHS if width <= vocab)

    def fit(self, budget: Budget) -> Fit[DynamicTree] | None:
        """See `eagle.plugin.FittedTree`: nodes and levels, and `top_k` unless given."""
        return Fit.best(
            dynamic_options(budget, self._widths),
            lambda option: DynamicTree(DynamicConfig(**option.settings)),
        )


def _build(config: DynamicConfig, context: BuildContext) -> DynamicTree:
    tree = DynamicTree(config) if config.size is None else FittedDynamic(config, context)
    if context.target is not None:
        tree.check_vocab(context.target.vocab_size)
    return tree


DYNAMIC: Strategy[TreeBuilder] = Strategy(
    name="dynamic",
    config=DynamicConfig,
    build=_build,
    description="a shape that follows the draft head's confidence (EAGLE-2); top-k candidates",
)
