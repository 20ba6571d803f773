"""The network of Medusa heads: residual blocks, and LM heads of their own; no file, no target."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "MedusaNetwork"]


class Block(nn.Module):
    """``x + SiLU(W x + b)`` (section 2.1.1); the identity of a fresh head, whose W is zero."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., H]`` of the same."""
        out: Tensor = x + F.silu(self.linear(x))
        return out


class MedusaNetwork(nn.ModuleList):
    """Heads of blocks and an LM head, named as in FasterDecoding/Medusa.

    Args:
        heads: K.
        blocks: of each head.
        size: H.
        vocab: V of the LM heads, or None where the target's is read.
    """

    def __init__(self, heads: int, blocks: int, size: int, vocab: int | None) -> None:
        self.blocks, self.shared = blocks, vocab is None
        ends = [] if vocab is None else [(size, vocab)]
        super().__init__(
            nn.Sequential(
                *(Block(size) for _ in range(blocks)),
                *(nn.Linear(*shape, bias=False) for shape in ends),
            )
            for _ in range(heads)
        )

    def of(self, level: int) -> list[Block]:
        """Return a head's blocks."""
        head: Any = self[level]
        return list(head[: self.blocks])

    def hidden(self, level: int, x: Tensor) -> Tensor:
        """Return what a head's blocks make of features ``[..., H]``."""
        for block in self.of(level):
            x = block(x.to(block.linear.weight.dtype))
        return x

    def end(self, level: int) -> nn.Linear:
        """Return the LM head that a head has of its own."""
        head: Any = self[level]
        end: nn.Linear = head[-1]
        return end
