"""What is read of a prompt in one pass; knows tokens and parameters, not whose request they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from eagle.plugin import SamplingParams

__all__ = ["GREEDY", "Piece", "Read"]

GREEDY = SamplingParams(temperature=0)
"""How no token is chosen, of a prompt that goes on behind its piece."""


class Read(Protocol):
    """A request, as far as reading its prompt goes."""

    @property
    def prompt(self) -> list[int]:
        """Its tokens."""
        ...

    @property
    def params(self) -> SamplingParams:
        """How its first token is chosen."""
        ...


R = TypeVar("R", bound=Read, covariant=True)


@dataclass(frozen=True)
class Piece(Generic[R]):
    """Some tokens of a prompt, to be read in one pass.

    Attributes:
        slot: where it is read into.
        request: whose prompt it is of.
        start: its first token, and how many rows are committed before it.
        end: behind its last token.
    """

    slot: int
    request: R
    start: int
    end: int

    @property
    def last(self) -> bool:
        """Whether the prompt ends with it, so that a first token is chosen."""
        return self.end == len(self.request.prompt)

    @property
    def text(self) -> list[int]:
        """Its tokens and the one behind them, 0 where the prompt ends."""
        text = self.request.prompt[self.start : self.end + 1]
        return [*text, 0] if self.last else text

    @property
    def params(self) -> SamplingParams:
        """How the token behind it is chosen."""
        return self.request.params if self.last else GREEDY

    @property
    def reports(self) -> bool:
        """Whether its request wants to know what the target gives the first token."""
        return self.last and self.request.params.logprobs is not None
