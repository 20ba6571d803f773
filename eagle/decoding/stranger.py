"""Notices a draft head that its target never agrees with; knows counts of tokens, no tensors.

A head of another model of the same sizes loads, runs, and costs time in every cycle, and what is
said stays right: nothing else would show that it is of no use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from eagle.errors import CheckpointError
from eagle.plugin import Identified, MeasuredHead
from eagle.spec import Resolved

__all__ = ["CYCLES", "Stranger"]

log = logging.getLogger("eagle.decoder")

CYCLES = 32
"""Cycles without one accepted draft that are too many for chance."""


class Stranger:
    """Says once, if so, that none of a decoder's first drafts was accepted.

    Heads without files are left alone: one that looks tokens up may have nothing to say.

    Args:
        resolved: the decoder's components.
    """

    def __init__(self, resolved: Resolved) -> None:
        self._head = resolved.head
        self._cycles = 0
        self._watching = resolved.tree.shape.depth > 0 and isinstance(self._head, MeasuredHead)

    def note(self, committed: Iterable[int | None]) -> None:
        """Take note of how many tokens a cycle committed in each slot; None where it idled."""
        if not self._watching:
            return
        counts = [count for count in committed if count]
        self._cycles += len(counts)
        if max(counts, default=1) > 1:
            self._watching = False
        elif self._cycles >= CYCLES:
            self._watching = False
            log.warning(
                "none of the draft head's candidates was accepted in %d cycles (tau exactly 1.00), "
                "so drafting only costs time here. Likely it was trained for another model of the "
                "same sizes, or for another fine-tune or quantisation of this one; or a head of "
                "EAGLE-3 is taken for another variant than it is (head.layers, "
                "head.norm_before_residual, head.feed_back)%s",
                self._cycles,
                self._identity(),
            )

    def _identity(self) -> str:
        try:
            return f": it is {self._head.identity}" if isinstance(self._head, Identified) else ""
        except CheckpointError:  # its folder is gone since it was loaded
            return ""
