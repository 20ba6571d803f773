"""Trees of a fixed shape, assembled level by level; knows a drafter, no model and no setting."""

from __future__ import annotations

import torch

from eagle.plugin import (
    Drafter,
    Draws,
    IncompatibleError,
    Law,
    SpecError,
    TokenTree,
    TreeShape,
)
from eagle.plugin.blocks.drawing import draw_level, likeliest, race_level
from eagle.plugin.blocks.indices import TreeIndex
from eagle.plugin.blocks.topology import Topology

__all__ = ["StaticTree"]


class StaticTree:
    """Fill a fixed topology with the head's candidates.

    At temperature 0, and under the law `top-k`, a node's children are the continuations of the
    ranks that its topology names. Under `without-replacement` they are drawn from the draft
    distribution one after another (EAGLE, arXiv 2401.15077, appendix on sampling); a child drawn
    from a distribution that has nothing left is padding. A batch may mix both. Under
    `shared-noise` they are the first in the race of their position, drawn without replacement too
    (`eagle.plugin.Draws.race`).

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
                tokens.append(
                    race_level(level, logits, depth, drafter, draws)
                    if self.sampling == Law.SHARED_NOISE and not drafter.sampling.greedy
                    else likeliest(level, logits)
                )
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
            law=self.sampling if drafts or self.sampling.fixed else Law.TOP_K,
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
