"""What a draft head is told of in one pass: committed text, or drafted tokens. Knows no head.

B slots, T or W entries each, F feature size, S size of a head's states. What a head has no use for
costs nothing: these are the tensors that a cycle has at hand anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eagle.cache import Step

__all__ = ["Committed", "Drafted"]


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
    """

    tokens: Tensor
    own: Tensor
    features: Tensor
    count: Tensor
    step: Step


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
