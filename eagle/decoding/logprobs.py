"""Log probabilities on the way from a cycle to those who asked; knows slots by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eagle.cycle import Report

__all__ = ["Logprobs", "TokenLogprobs"]


@dataclass(frozen=True)
class TokenLogprobs:
    """What the target gave a token, given the text before it.

    It is the log-softmax of the target's own logits, whatever temperature, filters and logits
    processors make of them; those decide the token, and not what is said of it here.

    Attributes:
        token: its id.
        logprob: its natural log probability.
        top: the likeliest tokens in its place with theirs, in falling order, as many as were asked
            for; the token is not always among them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Logprobs:
    """What a pass found, read back from the device once.

    Args:
        report: of the slots that it ran over.
    """

    def __init__(self, report: Report) -> None:
        self._chosen = report.chosen.cpu()
        self._values, self._indices = report.values.cpu(), report.indices.cpu()

    def of(self, slot: int, tokens: Sequence[int], count: int) -> tuple[TokenLogprobs, ...]:
        """Return what a slot's tokens were given.

        Args:
            slot: which one.
            tokens: those that the pass gave it.
            count: of the likeliest in each place.
        """
        chosen = self._chosen[slot, : len(tokens)].tolist()
        values = self._values[slot, : len(tokens), :count].tolist()
        indices = self._indices[slot, : len(tokens), :count].tolist()
        return tuple(
            TokenLogprobs(token, logprob, tuple(zip(place, given, strict=True)))
            for token, logprob, place, given in zip(tokens, chosen, indices, values, strict=True)
        )
