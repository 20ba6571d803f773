"""What a draft head is told of in one pass: committed text, or drafted tokens. Knows no head.

B slots, T or W entries each, F feature size, S size of a head's states. What a head has no use for
costs nothing: these are the tensors that a cycle has at hand anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eagle.cache import Step
from eagle.plugin.tree import TokenTree

__all__ = ["Committed", "Drafted", "Verified"]


@dataclass(frozen=True)
class Verified:
    """What a cycle's verification found, at the nodes that were rejected too.

    Of a head that has `eagle.plugin.LearnsVerified`.

    Attributes:
        tree: the nodes: tokens, parents, depths, ranks and ancestors, no draft distributions.
        logits: ``[B, N, V]``, the target's at every node, as it gives them: before logits
            processors and temperature. They are whole where several processes hold the target.
        real: bool ``[B, N]``, which nodes there are: of a slot that idles none, else the root and
            all that is no padding. What the others have may be anything, and must change nothing.
        path: int64 ``[B, D + 1]``, the accepted nodes from the root downwards. Entry t of what is
            committed is node ``path[:, t]``, as far as it counts.
    """

    tree: TokenTree
    logits: Tensor
    real: Tensor
    path: Tensor


@dataclass(frozen=True)
class Committed:
    """Committed text: T positions of each slot, of which the first `count` are real.

    Entry t stands at position ``step.positions[:, t]`` of its text. A text's first entry, at
    position 0, has token 0 in `own`. Entries behind the real ones are padding: they will be written
    again, or their slot idles, so whatever is remembered must not hold them. They come last, so
    that causal attention shows them to no real entry.

    In a packed pass (`eagle.plugin.Step.packed`) B is 1, and T counts the entries of all segments,
    and padding behind them in one that is captured; ``step.slots`` says whose each of them is. Only
    a head that declares ``paged`` or ``packs`` is given such entries (see
    `eagle.plugin.DraftHead`), and padding only one that declares ``paged``.

    Attributes:
        tokens: int64 ``[B, T]``, one step ahead: entry t follows the token that feature t is of.
        own: int64 ``[B, T]``, the features' own tokens, at the features' positions.
        features: ``[B, T, F]``, of the target.
        count: int64 ``[B]``, how many entries are real; 0 for a slot that idles.
        step: where they go.
        verified: what the cycle found that commits them, for a head that asks to be told
            (`eagle.plugin.LearnsVerified`); None of a prompt, and for all other heads.
    """

    tokens: Tensor
    own: Tensor
    features: Tensor
    count: Tensor
    step: Step
    verified: Verified | None = None


@dataclass(frozen=True)
class Drafted:
    """Drafted tokens: W nodes of each slot that are to be drafted from.

    Attributes:
        tokens: int64 ``[B, W]``, ids of the target.
        states: ``[B, W, S]``, each the state of the token's parent: what it was predicted from.
        level: the nodes' depth below the root, from 1; all nodes of one pass have the same. A
            host's number, so that each level may have weights of its own.
        step: where they go and what they see.
    """

    tokens: Tensor
    states: Tensor
    level: int
    step: Step
