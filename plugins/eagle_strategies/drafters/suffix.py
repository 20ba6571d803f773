"""Suffix decoding: what followed the longest suffix of a text before, as often as it did.

It knows texts as they are read back, on the host, and puts a small tree of their continuations on
the device before each cycle, which is captured all the same (SuffixDecoding, arXiv 2411.04975).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eagle.plugin import (
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
)
from eagle_strategies.drafters.automaton import ROOT, SuffixAutomaton, Walk
from eagle_strategies.drafters.confidence import Sure, Told

__all__ = ["SUFFIX", "Suffix", "SuffixConfig"]

_BETWEEN = -1  # stands between earlier texts, so that no match reaches from one into the next
_MOST_LOST = 4.0  # continuations that are less likely than e to minus this are left out


class SuffixConfig(StrategyConfig):
    """Settings of `suffix`."""

    shortest: Annotated[int, Field(ge=1, description="tokens of a match, at least")] = 2
    nodes: Annotated[
        int, Field(ge=1, le=200, description="continuations that are made ready in a cycle")
    ] = 32
    sure: Sure = 0.4
    earlier: Annotated[
        int,
        Field(
            ge=0,
            description="tokens of earlier answers, of all requests of this decoder, to look in "
            "too; what one says may then be told from how fast another one's answer comes",
        ),
    ] = 0


@dataclass
class _Trie:
    """Continuations of one text; node 0 is its end, and has no token."""

    tokens: list[int] = field(default_factory=lambda: [0])
    parents: list[int] = field(default_factory=lambda: [-1])
    scores: list[float] = field(default_factory=lambda: [0.0])
    depth: int = 0


class Suffix(Told["_Text"]):
    """Drafts from counts: each continuation is as likely as it was frequent there.

    A state is the number of a node of the slot's continuations.
    """

    capturable = True
    paged = True  # nothing is remembered by rows

    def __init__(self, config: SuffixConfig, context: BuildContext) -> None:
        super().__init__(config.sure)
        self._config, self._size = config, config.nodes + 1
        self._earlier = SuffixAutomaton()
        self._prompts: dict[int, int] = {}
        self._sent: list[_Trie] = []

    def state_size(self, target: TargetInfo) -> int:
        """Return 1, the number of a node; there are few enough for every dtype."""
        return 1

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """There is nothing to load."""
        self._device, self._dtype = target.device, target.dtype
        self._vocab = target.info.vocab_size

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate the continuations of every slot."""
        shape = (slots, self._size)
        # Node n of a slot: its token and its parent, and the logarithm of its share.
        self._nodes = torch.full((2, *shape), -1, dtype=torch.int64, device=self._device)
        self._scores = torch.zeros(shape, dtype=torch.float32, device=self._device)
        self._sent = []

    def absorb(self, committed: Committed) -> Tensor:
        """Return node 0: the host reads along itself."""
        return committed.features.new_zeros(*committed.tokens.shape, 1)

    def extend(self, drafted: Drafted) -> Tensor:
        """Go on to the nodes of the drafted tokens; to none where there is none."""
        tokens, parents = self._rows(len(drafted.tokens))
        same = (parents == drafted.states.long()) & (tokens == drafted.tokens[..., None])
        node = same.to(torch.uint8).argmax(2, keepdim=True)
        return node.where(same.any(2, keepdim=True), self._size).to(self._dtype)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits of the continuations alone; where there is none, of anything alike."""
        tokens, parents = self._rows(len(states))
        ours = parents == states.long()
        scores = self._scores[: len(states), None].expand(ours.shape).where(ours, -torch.inf)
        rest = torch.zeros_like(scores[..., :1]).where(~ours.any(2, keepdim=True), -torch.inf)
        rest = rest.to(self._dtype).expand(-1, -1, self._vocab)
        index = tokens.clamp(min=0).expand(ours.shape)
        return rest.scatter_reduce(2, index, scores.to(self._dtype), "amax")

    def _rows(self, slots: int) -> tuple[Tensor, Tensor]:
        tokens, parents = self._nodes[:, :slots, None]
        return tokens, parents

    def begin_request(self, slot: int, prompt: Sequence[int]) -> None:
        """See `eagle.plugin.RequestAware`."""
        super().begin_request(slot, prompt)
        self._prompts[slot] = len(prompt)

    def end_request(self, slot: int, text: Sequence[int]) -> None:
        """Keep the answer, where earlier ones are looked in."""
        super().end_request(slot, text)
        answer = text[self._prompts.pop(slot, len(text)) :]
        if not self._config.earlier or not answer:
            return
        if self._earlier.size + len(answer) > self._config.earlier:
            self._earlier = SuffixAutomaton()  # those that read along in the old one keep it
            answer = answer[: self._config.earlier]
        for token in (*answer, _BETWEEN):
            self._earlier.push(token)

    def offer(self, slots: int) -> Sequence[int]:
        """Put the continuations of the first slots on the device, and say how deep they are.

        A slot that is not sure enough has none.
        """
        levels = [self.levels(slot) for slot in range(slots)]
        tries = [
            self._readers[slot].continuations(self._config.nodes) if count else _Trie()
            for slot, count in enumerate(levels)
        ]
        if tries != self._sent:
            self._send(tries)
        return [min(count, trie.depth) for count, trie in zip(levels, tries, strict=True)]

    def _send(self, tries: list[_Trie]) -> None:
        size = self._size

        def rows(lists: list[list[int]]) -> list[list[int]]:
            return [[*one, *[-1] * (size - len(one))] for one in lists]

        numbers = [rows([one.tokens for one in tries]), rows([one.parents for one in tries])]
        scores = [[*one.scores, *[0.0] * (size - len(one.scores))] for one in tries]
        self._nodes[:, : len(tries)].copy_(torch.tensor(numbers))
        self._scores[: len(tries)].copy_(torch.tensor(scores))
        self._sent = tries

    def reader(self, slot: int, prompt: Sequence[int]) -> _Text:
        """See `Told`."""
        return _Text(self._config.shortest, prompt, self._earlier)


class _Text:
    """One request's text, and the places in it and in earlier answers that its end is found at."""

    def __init__(self, shortest: int, prompt: Sequence[int], earlier: SuffixAutomaton) -> None:
        self._shortest, self._own = shortest, SuffixAutomaton()
        self._earlier, self._walk = earlier, Walk(earlier)
        for token in prompt:
            self.push(token)

    def push(self, token: int) -> None:
        """See `Reader`."""
        self._own.push(token)
        if self._earlier.size:
            self._walk.push(token)

    def _match(self) -> tuple[SuffixAutomaton, int, int]:
        """Return where the longest match is, of this text rather than of another, and how long."""
        own = self._own
        state = max(own.link[own.last], ROOT)
        length = own.length[state]
        other, further = self._walk.place
        found = self._earlier.continuing(other)
        if found != other:
            further = self._earlier.length[found]
        return (self._earlier, found, further) if further > length else (own, state, length)

    def guess(self) -> tuple[int, int] | None:
        """See `Reader`."""
        automaton, state, length = self._match()
        shares = _shares(automaton, state) if length >= self._shortest else []
        return (shares[0][1], length) if shares else None

    def continuations(self, nodes: int) -> _Trie:
        """Return the likeliest continuations, as many nodes at most beside the end."""
        automaton, start, length = self._match()
        trie, depths = _Trie(), [0]
        # What is lost of the likelihood, in which order it was found, share, token, state, parent.
        waiting: list[tuple[float, int, float, int, int, int]] = []
        found = 0

        def branch(state: int, node: int, lost: float) -> None:
            nonlocal found
            for share, token, below in _shares(automaton, automaton.continuing(state)):
                if (further := lost - math.log(share)) <= _MOST_LOST:
                    found += 1
                    heapq.heappush(waiting, (further, found, share, token, below, node))

        if length >= self._shortest:
            branch(start, 0, 0.0)
        while waiting and len(trie.tokens) <= nodes:
            lost, _, share, token, state, parent = heapq.heappop(waiting)
            trie.tokens.append(token)
            trie.parents.append(parent)
            trie.scores.append(math.log(share))
            depths.append(depths[parent] + 1)
            branch(state, len(depths) - 1, lost)
        trie.depth = max(depths)
        return trie


def _shares(automaton: SuffixAutomaton, state: int) -> list[tuple[float, int, int]]:
    """Return share, token and state of what follows, the most frequent first; none at the root."""
    if state <= ROOT:
        return []
    found = [
        (automaton.count[below], token, below)
        for token, below in automaton.follow[state].items()
        if token >= 0
    ]
    total = sum(count for count, _, _ in found)
    return sorted(((c / total, t, b) for c, t, b in found), key=lambda one: (-one[0], one[1]))


SUFFIX: Strategy[DraftHead] = Strategy(
    name="suffix",
    config=SuffixConfig,
    build=Suffix,
    description="what followed the longest suffix of the text before, by counts; no weights",
)
