"""The speculative rule for a batch of token trees; knows distributions and trees, no model.

Per slot it does what `eagle.plugin.scalar_speculative` does, with the control flow of the deepest
and widest tree: a slot that has stopped, or has no such sibling, asks for a draw of probability 0,
or from no weight, and is left as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import (
    EVERY_LAW,
    Acceptance,
    Draws,
    TargetProbs,
    TokenTree,
    TreeShape,
    children_with,
    follow_argmax,
    follow_drawn,
    fusible,
    scalar_speculative,
    weights_at,
)
from eagle_plugins.acceptance import deciding

__all__ = ["SpeculativeRule"]


class SpeculativeRule:
    """Speculative sampling over siblings: the output has exactly the target's distribution.

    A candidate x drawn from a distribution q is accepted with probability min(1, p(x) / q(x)),
    p being the target's; after a rejection, p becomes max(p - q, 0) over its sum, and the next
    sibling is held against that (arXiv 2211.17192 and 2302.01318 for one candidate, SpecInfer,
    arXiv 2305.09781, for several). The siblings' law says what q is: all mass on x for a member
    of a fixed set; the draft distribution for independent siblings; the draft distribution
    without the siblings before, renormalised, for those drawn without replacement. The bonus
    token is drawn from what p has become.

    For a fixed set all this comes to one draw from p: a candidate that is drawn is accepted, and
    any other token is the bonus token. So it is done where every slot has a fixed set (the law
    top-k). Under the other laws a slot that was not sampled has its set tried in turn, beside
    those that were.
    """

    capturable = True
    lossless = True
    laws = EVERY_LAW
    scalar = staticmethod(scalar_speculative)
    """The scalar twin, which `eagle.testing.assert_lossless` proves exact on fractions."""

    def uniforms(self, shape: TreeShape) -> int:
        """Return how many uniforms per slot `accept` reads at most, whatever the tree's law.

        Under a sampled law it reads as many: one for each sibling of each level, and the bonus
        token's. Under top-k it reads ``depth + 1``, and where all slots are greedy none.
        """
        return shape.depth * shape.siblings + 1

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        """Choose an accepted path and the bonus token for every slot.

        Where the target's probabilities are NaN, the outcome is in range and means nothing.
        """
        if target.greedy:
            return self._follow_argmax(tree, target, shape)
        if (
            isinstance(target, TargetProbs)
            and fusible(draws, target.logits, target.sampling)
            and deciding.serves(tree)
        ):
            return deciding.accept(tree, target, shape, draws)
        if all(law.fixed for law in tree.every_law):
            return self._follow_drawn(tree, target, shape, draws)
        node = torch.zeros_like(tree.tokens[:, 0])
        path = [node]
        alive = torch.ones_like(node, dtype=torch.bool)
        # What the next token of a slot is drawn from if no further candidate is accepted.
        probs = target.at(node)
        for _ in range(shape.depth):
            draft = self._draft_at(tree, node)
            if draft is not None:
                draft = tree.widened(draft, probs.shape[-1])
            seeking, chosen = alive, node
            for rank in range(shape.siblings):
                child, exists = tree.child(node, rank)
                trial = seeking & exists
                token = tree.tokens.gather(1, child[:, None])
                proposal = self._proposal(tree, draft, token, probs, node, rank)
                chance = self._chance(probs, proposal, token)
                accepted = trial & draws.bernoulli(chance.where(trial, 0))
                rejected = (trial & ~accepted)[:, None]
                probs = self._residual(probs, proposal).where(rejected, probs)
                if draft is not None:
                    draft = self._rest(tree, draft, token, node).where(rejected, draft)
                chosen = child.where(accepted, chosen)
                seeking = seeking & ~accepted
            alive = alive & ~seeking
            node = chosen
            path.append(node.where(alive, 0))
            probs = self._after(target, node, alive, probs)
        # Node 0 is the root, which no node below it can be.
        joined = torch.stack(path, 1)
        return Acceptance(joined, (joined > 0).sum(1), draws.categorical(probs))

    def _follow_drawn(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        """Accept along tokens drawn from the target: the rule for fixed sets of candidates."""
        return follow_drawn(
            tree, target, shape, draws, weights=self._weights, children=self._children_with
        )

    _weights = staticmethod(weights_at)
    _children_with = staticmethod(children_with)
    _follow_argmax = staticmethod(follow_argmax)

    @staticmethod
    def _draft_at(tree: TokenTree, node: Tensor) -> Tensor | None:
        """Return the distributions ``[B, V]`` that a node's children were drawn from, if any."""
        return tree.drafts_at(node)

    @staticmethod
    def _proposal(
        tree: TokenTree,
        draft: Tensor | None,
        token: Tensor,
        probs: Tensor,
        node: Tensor,
        rank: int,
    ) -> Tensor:
        """Return the distributions ``[B, V]`` that candidates, int64 ``[B, 1]``, came from."""
        fixed = torch.zeros_like(probs).scatter(1, token, 1.0)
        if draft is None or tree.sampled is None:
            return fixed
        left = draft.to(probs.dtype)
        drawn = tree.by_law(node, lambda law: fixed if law.fixed else law.proposal(left, rank))
        return drawn.where(tree.sampled[:, None], fixed)

    @staticmethod
    def _chance(probs: Tensor, proposal: Tensor, token: Tensor) -> Tensor:
        """Return the candidates' acceptance probabilities ``[B]``."""
        ratio = (probs.gather(1, token) / proposal.gather(1, token))[:, 0].clamp(max=1)
        # Also turns NaN into 0, so that an oracle is never asked about it.
        return ratio.where(ratio > 0, 0)

    @staticmethod
    def _residual(probs: Tensor, proposal: Tensor) -> Tensor:
        """Return what is left of the target's distributions ``[B, V]`` after a rejection."""
        return _normalised((probs - proposal).clamp(min=0), otherwise=probs)

    @staticmethod
    def _rest(tree: TokenTree, draft: Tensor, token: Tensor, node: Tensor) -> Tensor:
        """Return what is left of draft distributions ``[B, V]`` once a token has been drawn."""
        return tree.by_law(node, lambda law: law.rest(draft, token))

    @staticmethod
    def _after(target: TargetProbs, node: Tensor, alive: Tensor, probs: Tensor) -> Tensor:
        """Return the target's distributions at the nodes just accepted, else the residuals."""
        return target.at(node).where(alive[:, None], probs)


def _normalised(weights: Tensor, otherwise: Tensor) -> Tensor:
    """Return weights ``[B, V]`` over their sums, or *otherwise* where nothing is left.

    Nothing can be left only by rounding (p and q equal but for the last bit), and then the
    rejection itself had a probability of that size; keeping p keeps the error there.
    """
    mass = weights.sum(-1, keepdim=True)
    return (weights / mass).where(mass > 0, otherwise)
