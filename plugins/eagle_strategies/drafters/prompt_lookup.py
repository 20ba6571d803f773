"""Prompt lookup: what followed the last tokens when they last occurred in prompt or answer.

It knows the text of each slot, on the device; it has no use for features (Saxena, Prompt Lookup
Decoding, 2023; arXiv 2304.04487 for references). Matching is comparing tensors, so a cycle with it
is captured. On the host, an index of the same n-grams says whether there is anything to draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from eagle.plugin import (
    INTEGER,
    AttentionBackend,
    BuildContext,
    Committed,
    Drafted,
    DraftHead,
    Pages,
    Strategy,
    StrategyConfig,
    TargetInfo,
    TargetModel,
    pack_integers,
    unpack_integers,
)
from eagle_strategies.drafters.confidence import Sure, Told

__all__ = ["PROMPT_LOOKUP", "Index", "PromptLookup", "PromptLookupConfig"]

_LATER = 0.7  # by how much the logit of each further continuation is lower: half as likely


class PromptLookupConfig(StrategyConfig):
    """Settings of `prompt-lookup`."""

    longest: Annotated[int, Field(ge=1, le=16, description="tokens of a match, at most")] = 4
    shortest: Annotated[int, Field(ge=1, le=16, description="tokens of a match, at least")] = 2
    continuations: Annotated[
        int, Field(ge=1, le=16, description="places that are read on from: a trie of so many")
    ] = 1
    sure: Sure = 0.4

    @model_validator(mode="after")
    def _ordered(self) -> PromptLookupConfig:
        if self.shortest > self.longest:
            raise ValueError(
                f"shortest: {self.shortest} is more than longest: {self.longest}, so nothing would "
                "ever match"
            )
        return self


class PromptLookup(Told["Index"]):
    """Reads on from where the last tokens occurred before: longest match first, then the latest.

    A state is where the text ends, how many tokens were drafted since, and the place behind each
    match, 0 for none. Where reading comes to the text's end it goes on behind the match again: what
    repeats itself is taken to go on so.
    """

    capturable = True

    def __init__(self, config: PromptLookupConfig, context: BuildContext) -> None:
        super().__init__(config.sure)
        self._config = config

    def state_size(self, target: TargetInfo) -> int:
        """Return the size of its numbers."""
        return INTEGER * (2 + self._config.continuations)

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """There is nothing to load."""
        self._device, self._dtype = target.device, target.dtype
        self._vocab = target.info.vocab_size

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate the texts: one place more than rows, since the root has no row yet."""
        self._text = torch.zeros(slots, rows + 1, dtype=torch.int64, device=self._device)

    def absorb(self, committed: Committed) -> Tensor:
        """Write the text down, and look for what every entry's last tokens were followed by."""
        step, count = committed.step, committed.count[:, None]
        real = torch.arange(committed.tokens.shape[1], device=self._device) < count
        places = torch.cat((step.rows[:, :1], step.rows + 1), 1)
        said = torch.cat((committed.own[:, :1], committed.tokens), 1)
        real = torch.cat((real[:, :1], real), 1)
        self._text[step.slots, places] = said.where(real, self._text[step.slots, places])

        text = self._text[step.slots[:, 0], : step.span + 1]
        end = step.rows + 1
        starts = self._starts(text, end)
        drafted = torch.zeros_like(end)
        return pack_integers(torch.cat((torch.stack((end, drafted), 2), starts), 2), self._dtype)

    def _starts(self, text: Tensor, end: Tensor) -> Tensor:
        """Return the places behind the best matches, int64 ``[B, T, C]``, of texts to *end*."""
        span, config = text.shape[1], self._config
        alive = torch.ones(1, 1, 1, dtype=torch.bool, device=text.device)
        length = torch.zeros(1, 1, 1, dtype=torch.uint8, device=text.device)
        for back in range(config.longest):
            mine = text.gather(1, (end - back).clamp(0, span - 1)).where(end >= back, -2)
            theirs = F.pad(text[:, : span - back], (back, 0), value=-1) if back else text
            alive = alive & (mine[..., None] == theirs[:, None])
            length = length + alive
        place = torch.arange(span, device=text.device)
        fits = (length >= config.shortest) & (place < end[..., None])
        score = (length.long() * span + place).where(fits, 0)
        wanted = min(config.continuations, span)
        best, found = score.topk(wanted, 2) if wanted > 1 else score.max(2, keepdim=True)
        starts = (found + 1).where(best > 0, 0)
        return F.pad(starts, (0, config.continuations - wanted))

    def extend(self, drafted: Drafted) -> Tensor:
        """Read on, and drop the places at which something else was said."""
        numbers = unpack_integers(drafted.states)
        here = self._said(numbers) == drafted.tokens[..., None]
        end, before, starts = numbers[..., :1], numbers[..., 1:2], numbers[..., 2:]
        return pack_integers(torch.cat((end, before + 1, starts.where(here, 0)), -1), self._dtype)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of the continuations alone; where there is none, of anything alike."""
        numbers = unpack_integers(states)
        known = numbers[..., 2:] > 0
        order = torch.arange(known.shape[2], device=states.device)
        chances = (-_LATER * order).expand(known.shape).where(known, -torch.inf)
        rest = torch.zeros_like(chances[..., :1]).where(~known.any(2, keepdim=True), -torch.inf)
        rest = rest.to(self._dtype).expand(-1, -1, self._vocab)
        return rest.scatter_reduce(2, self._said(numbers), chances.to(self._dtype), "amax")

    def _said(self, numbers: Tensor) -> Tensor:
        """Return the tokens, int64 ``[B, W, C]``, that follow by each of a state's places."""
        end, before, starts = numbers[..., :1], numbers[..., 1:2], numbers[..., 2:]
        # The text repeats itself with this period, up to its end.
        place = starts + before % (end + 1 - starts).clamp(min=1)
        text = self._text[: numbers.shape[0]]
        return text.gather(1, place.flatten(1).clamp(max=text.shape[1] - 1)).view(place.shape)

    def reader(self, slot: int, prompt: Sequence[int]) -> Index:
        """See `Told`."""
        config = self._config
        return Index(range(config.longest, config.shortest - 1, -1), prompt)


class Index:
    """Where each n-gram of a text was last followed by something, as the device finds it.

    Args:
        lengths: of n-grams, in the order in which they are tried.
        prompt: what the text begins with.
    """

    def __init__(self, lengths: Sequence[int], prompt: Sequence[int]) -> None:
        self._lengths = lengths
        self._behind: dict[tuple[int, ...], int] = {}
        self._text: list[int] = []
        for token in prompt:
            self.push(token)

    def push(self, token: int) -> None:
        """See `Reader`."""
        text, end = self._text, len(self._text)
        for length in self._lengths:
            if length <= end:
                self._behind[tuple(text[end - length :])] = end
        text.append(token)

    def guess(self) -> tuple[int, int] | None:
        """See `Reader`."""
        text = self._text
        for length in self._lengths:
            place = self._behind.get(tuple(text[-length:]))
            if place is not None and len(text) > length:
                return text[place], length
        return None


PROMPT_LOOKUP: Strategy[DraftHead] = Strategy(
    name="prompt-lookup",
    config=PromptLookupConfig,
    build=PromptLookup,
    description="what followed the last tokens earlier in prompt or answer; no weights",
)
