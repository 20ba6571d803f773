"""Token recycling: what the target itself held likely where the last tokens occurred before.

It knows the text of each slot and the target's likeliest tokens at each of its places, on the
device, in rows that texts share as they share keys and values; and by token, those of the nodes
that were verified of late, whether they were accepted or not (Token Recycling, arXiv 2408.08696).
It differs from the paper in three ways:

- The paper keeps candidates for each token of the vocabulary alone, here they are also kept for
  each place of a text. So several last tokens can be matched, not the last one alone, and what was
  said behind a place in fact is a candidate beside what the target held likely there. What the
  verification found by token goes with the tokens before it, to be matched likewise.
- The paper keeps its matrix from one request to the next, which would tell each of them about the
  others. Here it is a request's own, and of some thousand tokens, the latest of those that have one
  place.
- A prompt's pass gives no logits but the last, so the LM head is read over prompts once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from eagle.plugin import (
    INTEGER,
    AttentionBackend,
    BuildContext,
    Committed,
    Drafted,
    DraftHead,
    Pages,
    Step,
    Strategy,
    StrategyConfig,
    TargetInfo,
    TargetModel,
    TreeCache,
    Verified,
    pack_integers,
    unpack_integers,
)
from eagle_strategies.drafters.confidence import Sure, Told
from eagle_strategies.drafters.prompt_lookup import Index

__all__ = ["RECYCLING", "Recycling", "RecyclingConfig"]

_PIECE = 64  # entries whose logits are held at a time
_UNIT = 1 / 1024  # in which logarithms of chances are kept, beside tokens, as whole numbers
_BUCKETS = 2048  # places for tokens that were verified, of each slot
_LOWEST = -64.0  # a logarithm no lower than this is kept


class RecyclingConfig(StrategyConfig):
    """Settings of `recycling`."""

    candidates: Annotated[
        int, Field(ge=1, le=64, description="tokens that are kept for each place, at most")
    ] = 8
    longest: Annotated[
        int, Field(ge=1, le=8, description="last tokens that are matched, at most; 1 in the paper")
    ] = 3
    said: Annotated[
        float,
        Field(
            ge=0, lt=1, description="least chance of what was said at a place; 0 as in the paper"
        ),
    ] = 0.5
    sure: Sure = 0.4


class Recycling(Told[Index]):
    """Drafts what the target held likely where the longest match with the last tokens ended.

    Of places with matches alike it is the latest, whether it was said or only tried. A state is
    where the text ends, and the last tokens, drafted ones included, the latest first.
    """

    capturable = True
    paged = True

    def __init__(self, config: RecyclingConfig, context: BuildContext) -> None:
        super().__init__(config.sure)
        self._config = config

    def state_size(self, target: TargetInfo) -> int:
        """Return the size of its numbers."""
        return INTEGER * (1 + self._config.longest)

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Keep the target's LM head; there are no weights."""
        self._target, self._vocab = target, target.info.vocab_size
        self._kept = min(self._config.candidates, self._vocab)

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate what is kept of every place: as keys, its own token and its candidates.

        And of the tokens that were verified of late, the tokens up to each (one more than their
        ids: 0 is none), its position and its candidates, at a place that follows from its id.
        """
        # Not rougher, as drafts may be: an answer's candidates are the target's own, and where a
        # chat's next turn has to read that answer as a prompt they should be the same.
        self._read, self._rows = self._target.logits, rows
        self._cache = TreeCache(
            layers=1,
            slots=slots,
            kv_heads=1,
            rows=rows,
            head_dim=1 + self._kept,
            dtype=torch.int32,
            device=self._target.device,
            pages=pages,
        )
        # All rows of all slots, as the cache locates them.
        self._places = self._cache.keys[0].flatten(0, 2)
        self._chances = self._cache.values[0].flatten(0, 2)
        self._buckets = min(_BUCKETS, self._vocab)
        columns = self._config.longest + 1 + 2 * self._kept
        self._tried = torch.zeros(
            slots * self._buckets, columns, dtype=torch.int32, device=self._target.device
        )

    @property
    def verified_memory(self) -> tuple[Tensor]:
        """See `eagle.plugin.LearnsVerified`: of each slot the tokens that were verified of late."""
        return (self._tried.view(-1, self._buckets, self._tried.shape[1]),)

    def absorb(self, committed: Committed) -> Tensor:
        """Write down each place; what is no text lies behind it, where nobody looks."""
        step = self._cache.locate(committed.step)
        found = committed.verified
        if found is None:
            tokens, chances = self._likeliest(committed.features, self._read)
        else:
            every = self._likeliest(found.logits)
            self._learn(found, step, *every)
            path = found.path[..., None].expand(-1, -1, self._kept)
            tokens, chances = (one.gather(1, path) for one in every)
        own = committed.own[..., None]
        place = torch.stack((torch.cat((own, tokens), -1), torch.cat((own, chances), -1))).int()
        self._cache.write(0, place[0, :, None], place[1, :, None], step)

        last = [self._said_at(step, step.rows - back) for back in range(self._config.longest - 1)]
        numbers = (step.rows + 1, committed.tokens, *last)
        return pack_integers(torch.stack(numbers, -1), self._target.dtype)

    def _said_at(self, step: Step, rows: Tensor) -> Tensor:
        """Return the texts' tokens at some rows, int64 as `rows`; V before their first."""
        where = self._cache.locate(replace(step, rows=rows.clamp(min=0))).place
        assert where is not None
        said = self._places[where, 0].view(rows.shape)
        return said.long().where(rows >= 0, self._vocab)

    def _learn(self, found: Verified, step: Step, tokens: Tensor, chances: Tensor) -> None:
        """Keep the candidates of every node by its token, of several the accepted or last one's."""
        tree, longest = found.tree, self._config.longest
        # The text before the root is a chain above it.
        back = torch.arange(1 - longest, 0, device=tree.tokens.device)
        text = self._said_at(step, step.lengths[:, None] + back)
        line = torch.cat((text, tree.tokens), 1)
        root, order = longest - 1, torch.arange(line.shape[1], device=line.device)
        above = torch.cat(((order[:root] - 1).expand_as(text), tree.parents + root), 1).clamp(min=0)
        node, last = order[root:].expand_as(tree.tokens), []
        for _ in range(longest):
            last.append(line.gather(1, node) + 1)
            node = above.gather(1, node)
        position = step.lengths[:, None] + tree.depths
        rows = torch.cat((torch.stack((*last, position), -1), tokens, chances), -1).int()

        # Where several have one place, all write what one of them has: their order is no matter.
        place = tree.tokens % self._buckets
        count = place.shape[1]
        accepted = torch.zeros_like(place).scatter(1, found.path, count)
        worth = (1 + order[:count] + accepted).where(found.real, 0)
        best = ((place[:, :, None] == place[:, None]) * worth[:, None]).amax(2)
        where = torch.arange(len(place), device=place.device)[:, None] * self._buckets + place
        source = ((best - 1) % count)[..., None].expand_as(rows)
        rows = rows.gather(1, source).where(best[..., None] > 0, self._tried[where])
        self._tried.index_copy_(0, where.flatten(), rows.flatten(0, 1))

    def _likeliest(
        self, given: Tensor, read: Callable[[Tensor], Tensor] = lambda logits: logits
    ) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens and the logarithms of their chances, ``[B, T, K]``.

        Args:
            given: ``[B, T, ...]``, what logits are read from.
            read: gives them, ``[B, T, V]``.
        """
        found: list[tuple[Tensor, Tensor]] = []
        for piece in torch.split(given, _PIECE, 1):
            logits = read(piece).float()
            best, tokens = logits.topk(self._kept)
            chances = (best - logits.logsumexp(-1, keepdim=True)).clamp(min=_LOWEST) / _UNIT
            found.append((tokens, chances.round().long()))
        every, shares = zip(*found, strict=True)
        return torch.cat(every, 1), torch.cat(shares, 1)

    def extend(self, drafted: Drafted) -> Tensor:
        """Go on to the drafted tokens, in the same text."""
        numbers = unpack_integers(drafted.states)
        end, before = numbers[..., :1], numbers[..., 1:-1]
        return pack_integers(
            torch.cat((end, drafted.tokens[..., None], before), -1), self._target.dtype
        )

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of candidates alone; of a token that is not known, of anything alike."""
        end, *last = unpack_integers(states)[..., None].unbind(-2)
        place = self._located(len(states))
        said = self._places[place, 0]
        row = torch.arange(place.shape[1], dtype=torch.int32, device=states.device)
        alive, length = row < end, torch.zeros((), dtype=torch.uint8, device=states.device)
        for back, token in enumerate(last):
            earlier = F.pad(said[:, : len(row) - back], (back, 0), value=-1)
            alive = alive & (earlier[:, None] == token)
            length = length + alive
        best = (length.int() * len(row) + row).where(length > 0, -1).amax(2, keepdim=True)
        known, found = best >= 0, best.clamp(min=0) % len(row)

        # Rows that nobody wrote may hold any number, and so may candidates that they lead to.
        where = place.gather(1, found.flatten(1)).view(found.shape[:2])
        # Of the text and what was verified the longer match goes first, then the later one.
        match, position, tried, chances = self._tried_with(torch.cat(last, -1))
        newer = (match > 0) & (match * len(row) + position > best)
        likely = tried.where(newer, self._places[where, 1:])
        chance = chances.where(newer, self._chances[where, 1:]) * _UNIT
        chance = chance.where(known | newer, -torch.inf)
        if self._config.said:
            ahead = (found + 1).clamp(max=len(row) - 1)
            real = known & (found + 1 < end)
            followed = said.gather(1, ahead.flatten(1)).view(found.shape).where(real, 0)
            least = torch.full_like(chance[..., :1], math.log(self._config.said))
            likely = torch.cat((likely, followed), -1)
            chance = torch.cat((chance, least.where(real, -torch.inf)), -1)
        likely = likely.long().clamp(0, self._vocab - 1)
        chance = chance.to(self._target.dtype)
        rest = torch.zeros_like(chance[..., :1]).where(~(known | newer), -torch.inf)
        rest = rest.expand(-1, -1, self._vocab)
        return rest.scatter_reduce(2, likely, chance, "amax")

    def _tried_with(self, last: Tensor) -> tuple[Tensor, ...]:
        """Return what was kept of tokens that were verified, by the last tokens ``[B, W, L]``.

        Returns:
            How many of the last tokens match, ``[B, W, 1]``, the position at which they did, and
            ``[B, W, K]`` each, candidates and their chances.
        """
        slot = torch.arange(len(last), device=last.device)[:, None]
        kept = self._tried[slot * self._buckets + last[..., 0] % self._buckets]
        sizes = [self._config.longest, 1, self._kept, self._kept]
        tokens, position, tried, chances = torch.split(kept, sizes, -1)
        match = (tokens == last + 1).long().cumprod(-1).sum(-1, keepdim=True)
        return match, position, tried, chances

    def _located(self, slots: int) -> Tensor:
        """Return where among all rows those of the first slots are, int64 ``[slots, rows]``."""
        row = torch.arange(self._rows, device=self._target.device).expand(slots, -1)
        place = self._cache.locate(Step(row, row, row[:, 0], row.new_zeros(0), 0)).place
        assert place is not None
        return place.view(slots, -1)

    def reader(self, slot: int, prompt: Sequence[int]) -> Index:
        """See `Told`."""
        return Index(range(self._config.longest, 0, -1), prompt)


RECYCLING: Strategy[DraftHead] = Strategy(
    name="recycling",
    config=RecyclingConfig,
    build=Recycling,
    description="what the target held likely where the last tokens occurred before; no weights",
)
