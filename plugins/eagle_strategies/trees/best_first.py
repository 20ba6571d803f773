"""The likeliest nodes of all that is drafted, for any drafter; knows draft logits, no model.

A node's *value* is the product of the chances on its path. Of a drafter whose levels depend on what
is drafted (EAGLE) the nodes of highest value on each level are extended, as in EAGLE-2 (arXiv
2406.16858); of one that drafts all levels at once nothing has to be extended, so all nodes count
and the tree is the best of its size (DDTree, arXiv 2604.12989).

Above temperature 0 candidates are drawn, by noise that is the text's own (`eagle.plugin.Law`). The
tokens that follow are drawn from the target by the same noise, and by nothing of the tree; so it
may be chosen after looking at what was drawn.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from eagle.plugin import (
    MAX_NODES,
    BuildContext,
    Drafter,
    Draws,
    IncompatibleError,
    Law,
    Strategy,
    StrategyConfig,
    TokenTree,
    TreeBuilder,
    TreeShape,
    keep_best,
    probabilities,
    top_k,
)

__all__ = ["BEST_FIRST", "BestFirstConfig", "BestFirstTree"]

_SURE = 2  # times `least`: children have less than their parent, and a level costs a pass
_TRUE = 2 / 3  # of what a race of the head's weights promises, about so much the target's keeps

Count = Annotated[int, Field(ge=1, lt=MAX_NODES, strict=True)]


class BestFirstConfig(StrategyConfig):
    """Settings of `best-first`."""

    nodes: Annotated[Count, Field(description="candidates kept, without the root")] = 60
    depth: Annotated[Count, Field(description="drafted levels")] = 6
    siblings: Annotated[Count, Field(description="children drafted under a node")] = 10
    width: Annotated[
        Count, Field(description="nodes extended on each level, where the head has to extend them")
    ] = 10
    least: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None,
        Field(
            description="the value below which candidates are left out: `nodes` and `width` are "
            "the most there are then; null: none are, and cycles can be captured"
        ),
    ] = None
    extend: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None,
        Field(
            description="with `least`, the value below which a node is not extended; null: twice it"
        ),
    ] = None
    sampling: Annotated[
        Literal["top-k", "shared-noise"],
        Field(description="how candidates are chosen at temperature > 0; at 0 it is always top-k"),
    ] = "shared-noise"

    @property
    def candidates(self) -> int:
        """Drafted nodes, of which `nodes` are kept."""
        most, level = 0, 1
        for _ in range(self.depth):
            level = min(level, self.width) * self.siblings
            most += level
        return most

    @property
    def extended(self) -> float:
        """The value from which nodes are extended, with `least`."""
        return _SURE * (self.least or 0.0) if self.extend is None else self.extend

    @model_validator(mode="after")
    def _possible(self) -> BestFirstConfig:
        if self.nodes > self.candidates:
            raise ValueError(
                f"nodes is {self.nodes}, but depth {self.depth}, siblings {self.siblings} and "
                f"width {self.width} draft only {self.candidates} candidates: lower nodes, or "
                "raise one of the others"
            )
        if self.least is None and self.extend is not None:
            raise ValueError("extend goes with least only: give both, or leave extend out")
        if self.least is not None and self.sampling != "shared-noise":
            raise ValueError(
                f"least goes with sampling: shared-noise, not {self.sampling}: a text would depend "
                "on how many share the batch"
            )
        if self.least is not None and self.extended < self.least:
            raise ValueError(
                f"extend is {self.extend}, less than least, which is {self.least}: what is left "
                "out is not extended; raise extend"
            )
        if (extended := (self.depth - 1) * self.width) > MAX_NODES:
            raise ValueError(
                f"depth {self.depth} and width {self.width} have the draft head extend {extended} "
                f"nodes in every cycle; at most {MAX_NODES} are allowed"
            )
        return self


class BestFirstTree:
    """Draft level by level, and keep the candidates of highest value.

    What a candidate's chance is taken for: at temperature 0, and under the law top-k, its draft
    probability at temperature 1, as in EAGLE-2. Under shared noise, its pace in the race of its
    position over that of all siblings together: were the target's weights those of the head, each
    times noise like the race's own, that would be its chance to win.

    With `least`, trees have the nodes that are likelier than that, and those alone are extended: as
    many as the head is sure of, which is read on the host (OPT-Tree, arXiv 2406.17276, stops
    drafting likewise). Of several slots, all have as many as the one with the most.
    """

    uniforms = 0

    def __init__(self, config: BestFirstConfig) -> None:
        self.config = config
        self.capturable = config.least is None
        self.law = Law.named(config.sampling)
        self.laws = frozenset({Law.TOP_K, self.law})
        levels = config.depth - 1
        self.shape = TreeShape(
            config.nodes + 1, config.depth, config.siblings, levels * config.width
        )

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one tree per slot.

        Raises:
            IncompatibleError: the vocabulary has fewer than `siblings` tokens, or the head drafts
                fewer than `depth` levels.
        """
        config, levels = self.config, drafter.levels()
        if levels is not None and levels.shape[1] < config.depth:
            raise IncompatibleError(
                f"tree.depth is {config.depth}, but the head drafts only {levels.shape[1]} levels"
            )
        logits = drafter.begin()
        self.check_vocab(logits.shape[-1])
        token, value = self._children(logits, 0, drafter, draws)
        token, value = token[:, 0], value[:, 0]
        above = torch.full_like(token, -1)  # by number of expansion, as the drafter counts
        tokens, values, parents = [token], [value], [above]
        first = expanded = 0
        for depth in range(1, config.depth):
            # Where it costs the head nothing, whatever may be kept is extended.
            most = config.width if levels is None else config.nodes
            if config.least is not None:
                most = min(most, _most(value, config.extended))
                if not most:
                    break
            beam = value.sort(dim=1, descending=True, stable=True).indices[:, :most]
            width = beam.shape[1]
            parents.append((first + beam).repeat_interleave(config.siblings, 1))
            first += value.shape[1]
            if levels is None:
                logits = drafter.expand(token.gather(1, beam), above.gather(1, beam))
            else:
                logits = levels[:, depth : depth + 1]
            token, chance = self._children(logits, depth, drafter, draws)
            over = value.gather(1, beam)[..., None]
            # No child comes before its parent, by rounding or as NaN, which sorts before all.
            value = torch.fmin(over + chance, over).flatten(1)
            token = token.expand(-1, width, -1).flatten(1)
            number = torch.arange(expanded, expanded + width, device=token.device)
            above = number.repeat_interleave(config.siblings).expand_as(token)
            expanded += width
            tokens.append(token)
            values.append(value)
        every, nodes = torch.cat(values, 1), config.nodes
        if config.least is not None:
            nodes = min(nodes, max(1, _most(every, config.least)))
        tree = keep_best(
            drafter.root,
            torch.cat(tokens, 1),
            every,
            torch.cat(parents, 1),
            nodes,
            config.depth,
        )
        return replace(tree, law=self.law)

    def _children(
        self, logits: Tensor, depth: int, drafter: Drafter, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Return W nodes' candidates, int64 ``[B, W, K]``, and the logarithms of their chances."""
        count, sampling = self.config.siblings, drafter.sampling
        best = top_k(logits, count)[1]
        chances = logits.log_softmax(-1, dtype=torch.float32).gather(2, best)
        if self.law == Law.TOP_K or sampling.greedy:
            return best, chances
        weights = probabilities(logits, sampling)
        raced, paces = draws.race(weights, depth, count, drafter.draft_vocab)
        shares = (paces / paces.sum(-1, keepdim=True)).log().float()
        if self.config.least is not None:
            shares = shares + math.log(_TRUE)
        sampled = sampling.temperature[:, None, None] > 0
        return raced.where(sampled, best), shares.where(sampled, chances)

    def check_vocab(self, vocab: int) -> None:
        """Raise `IncompatibleError` where a node cannot have `siblings` different children."""
        if self.config.siblings > vocab:
            raise IncompatibleError(
                f"tree.siblings is {self.config.siblings}, but the vocabulary that is drafted from "
                f"has only {vocab} tokens: a node cannot have more children than that"
            )


def _most(values: Tensor, least: float) -> int:
    """Return how many of the logarithms of values ``[B, C]`` are high enough, in any one slot."""
    return int((values >= math.log(least)).sum(1).max())


def _build(config: BestFirstConfig, context: BuildContext) -> BestFirstTree:
    tree = BestFirstTree(config)
    if context.target is not None:
        tree.check_vocab(context.target.vocab_size)
    return tree


BEST_FIRST: Strategy[TreeBuilder] = Strategy(
    name="best-first",
    config=BestFirstConfig,
    build=_build,
    description="the likeliest nodes of all that is drafted; candidates drawn at temperature > 0",
)
