"""Enumerates what several cycles of a decoder say: every outcome of every draw, lane by lane.

It knows a decoder's `Cycle` and the seam of its draws; everything behind that is the real thing.
All lanes are slots of one batch. Enumerating whole generations would repeat itself: two lanes
that came to the same text through the same accepted nodes go on alike. So one of them goes on for
all, by replaying its outcomes, and probabilities are multiplied along the chain of states.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from eagle.cycle import Cycle, Processing, Processors
from eagle.decoding import Decoder
from eagle.plugin import (
    Acceptance,
    AcceptanceRule,
    Draws,
    OfferingHead,
    Sampling,
    SamplingParams,
    TargetProbs,
    TokenTree,
    TreeShape,
)
from eagle.testing.oracle import EnumeratingDraws

__all__ = ["LaneDraws", "decoder_distribution"]

Text = tuple[int, ...]
_SCRIPT = 256
_STATE_TOLERANCE = 1e-4


def decoder_distribution(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    processors: Processors = (),
    tokens: int = 4,
    slots: int = 256,
) -> list[dict[Text, float]]:
    """Return, for each prompt, the probability of every text of some tokens that comes out."""
    cycle = decoder._cycle
    draws, compiled = cycle.draws, cycle.compiled
    cycle.compiled = {}  # an oracle is asked on the host
    try:
        with torch.inference_mode():
            return _World(cycle, prompts, params, processors, tokens, slots).distributions()
    finally:
        cycle.draws, cycle.compiled = draws, compiled
        decoder.loop.let_go()  # the caches were allocated for other slots


class LaneDraws:
    """Draws of some slots that an oracle answers, one lane per slot; idle slots ask for nothing.

    Args:
        oracle: enumerates the outcomes.
        lanes: int64 ``[B]``, the lanes of the slots that draw.
        active: bool ``[B]``, which of them do not idle.
        positions: int64 ``[B]``, of their roots, where races are to be those of whole texts.
    """

    def __init__(
        self,
        oracle: EnumeratingDraws,
        lanes: Tensor,
        active: Tensor,
        positions: Tensor | None = None,
    ) -> None:
        self._oracle, self._lanes, self._active = oracle, lanes, active.cpu()
        self._positions = torch.zeros_like(lanes) if positions is None else positions.cpu().clone()

    def bernoulli(self, probs: Tensor) -> Tensor:
        """See `eagle.plugin.Draws.bernoulli`."""
        return self._oracle.bernoulli(self._spread(probs))[self._lanes].to(probs.device)

    def categorical(self, weights: Tensor) -> Tensor:
        """See `eagle.plugin.Draws.categorical`."""
        return self._oracle.categorical(self._spread(weights))[self._lanes].to(weights.device)

    def uniform(self, cuts: Callable[[], Tensor]) -> Tensor:
        """See `eagle.plugin.Draws.uniform`."""
        made = cuts()
        whole = self._spread(made)
        return self._oracle.uniform(lambda: whole)[self._lanes].to(made.device)

    def race(
        self, weights: Tensor, depth: int, count: int = 1, vocab: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `eagle.plugin.Draws.race`."""
        positions = torch.zeros(self._oracle.lanes, dtype=torch.int64)
        positions = positions.index_copy(0, self._lanes, self._positions + depth)
        places, paces = self._oracle.race_at(self._spread(weights), positions, count)
        own = self._lanes
        return places[own].to(weights.device), paces[own].to(weights.device)

    def _spread(self, asked: Tensor) -> Tensor:
        shape = (self._oracle.lanes, *asked.shape[1:])
        active = self._active.view(-1, *[1] * (asked.dim() - 1))
        values = asked.double().cpu().where(active, 0)
        return torch.zeros(shape, dtype=torch.float64).index_copy(0, self._lanes, values)


Key = tuple[int, Text, tuple[Text, ...], tuple[float, ...], bytes]
"""A prompt, the text behind it, the accepted nodes of each cycle that led there, what these cycles
revealed of the noise of positions that are still to come, and what the head learned of them."""


@dataclass
class _State:
    """What lanes of the same key have in common, and where the next cycle leads from there.

    Attributes:
        key: its key.
        ends: probability of texts that the next cycle completes.
        leads: probability of states that it leads to.
    """

    key: Key
    ends: dict[Text, float] = field(default_factory=lambda: defaultdict(float))
    leads: dict[Key, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def cycles(self) -> int:
        return len(self.key[2])


@dataclass
class _Recorder:
    """Stands in for an acceptance rule and keeps the outcome."""

    rule: AcceptanceRule
    last: Acceptance | None = None

    def uniforms(self, shape: TreeShape) -> int:
        return self.rule.uniforms(shape)

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        self.last = self.rule.accept(tree, target, shape, draws)
        return self.last

    def paths(self) -> list[Text]:
        assert self.last is not None
        rows = zip(self.last.path.tolist(), self.last.count.tolist(), strict=True)
        return [tuple(path[1 : count + 1]) for path, count in rows]


@dataclass
class _Lane:
    """A script to follow, the state whose next cycle it enumerates, and the text by now."""

    state: _State
    script: Tensor
    text: Text = ()


Work = deque[_Lane]


class _World:
    """The enumeration of one decoder's cycles over some prompts."""

    def __init__(
        self,
        cycle: Cycle,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        processors: Processors,
        tokens: int,
        slots: int,
    ) -> None:
        self.cycle, self.prompts, self.processors = cycle, prompts, processors
        self.params, self.tokens = params, tokens
        rows = max(map(len, prompts)) + tokens + cycle.depth + 1
        self.slots = cycle.allocate(slots, rows)
        self.span = cycle.span(rows)
        self.sampling = Sampling.of([params] * slots, cycle.target.device)
        self.offering = cycle.head if isinstance(cycle.head, OfferingHead) else None
        self.states: dict[Key, _State] = {}
        self.memory: dict[tuple[int, Text], Tensor] = {}

    def distributions(self) -> list[dict[Text, float]]:
        """Enumerate, and multiply probabilities along the states."""
        starts = [
            (prompt, first, chance)
            for prompt in range(len(self.prompts))
            for first, chance in self._first_tokens(prompt)
        ]
        starts.sort(key=lambda start: start[1])  # so that a batch mixes prompts
        count = self.slots.root.shape[0]
        for begin in range(0, len(starts), count):
            self._explore([start[:2] for start in starts[begin : begin + count]])
        weights: dict[Key, float] = defaultdict(float)
        for prompt, first, chance in starts:
            weights[prompt, (first,), (), (), b""] = chance
        found: list[dict[Text, float]] = [defaultdict(float) for _ in self.prompts]
        for state in sorted(self.states.values(), key=lambda state: len(state.key[1])):
            for text, chance in state.ends.items():
                found[state.key[0]][text] += weights[state.key] * chance
            for key, chance in state.leads.items():
                weights[key] += weights[state.key] * chance
        return found

    def _first_tokens(self, prompt: int) -> Iterator[tuple[int, float]]:
        """Yield the tokens that may follow a prompt, with their probabilities."""
        waiting = [torch.full((1, 1), -1)]
        while waiting:
            oracle = EnumeratingDraws(waiting.pop())
            yield self._prefill(0, prompt, oracle), float(oracle.probability)
            waiting += [script[None] for forks in oracle.forks for script in forks]

    def _prefill(self, slot: int, prompt: int, oracle: EnumeratingDraws) -> int:
        text = self.prompts[prompt]
        self.cycle.draws = lambda uniforms: LaneDraws(
            oracle, torch.tensor([0]), torch.tensor([True])
        )
        self.cycle.prefill(
            self.slots,
            slot,
            text,
            Sampling.of([self.params], self.cycle.target.device),
            torch.zeros(1, 1, dtype=torch.float64),
            self._processing({slot: text}),
        )
        _, nan, first, *_ = self.slots.outcome[slot].tolist()
        assert not nan, f"the cycle reports {nan} after {list(text)}"
        return int(first)

    def _processing(self, texts: Mapping[int, Sequence[int]]) -> Processing | None:
        if not self.processors:
            return None
        return Processing({slot: (text, self.processors) for slot, text in texts.items()})

    def _explore(self, starts: Sequence[tuple[int, int]]) -> None:
        """Enumerate all that follows some prompts and first tokens, each in slots of its own."""
        count = self.slots.root.shape[0]
        owner = [slot * len(starts) // count for slot in range(count)]
        work: list[Work] = [deque() for _ in starts]
        for (prompt, first), own in zip(starts, work, strict=True):
            self._queue((prompt, (first,), (), (), b""), torch.full((_SCRIPT,), -1), own)
        for slot, index in enumerate(owner):
            prompt, first = starts[index]
            self._prefill(slot, prompt, EnumeratingDraws(torch.tensor([[first]])))
        begin = [tensor.clone() for tensor in self.slots.carried]
        while any(work):
            for tensor, kept in zip(self.slots.carried, begin, strict=True):
                tensor.copy_(kept)
            self._follow([work[index] for index in owner])

    def _queue(self, key: Key, script: Tensor, work: Work) -> None:
        if key not in self.states and len(key[1]) < self.tokens:
            self.states[key] = _State(key)
            work.append(_Lane(self.states[key], script))

    def _follow(self, queues: Sequence[Work]) -> None:
        """Follow one script in each slot, and queue what branches off where it ends."""
        lanes = {slot: queue.popleft() for slot, queue in enumerate(queues) if queue}
        scripts = torch.full((len(queues), _SCRIPT), -1)
        for slot, lane in lanes.items():
            scripts[slot], lane.text = lane.script, lane.state.key[1][:1]
            if self.offering:
                self.offering.begin_request(slot, self.prompts[lane.state.key[0]])
                self.offering.follow(slot, lane.text)
        oracle = EnumeratingDraws(scripts)
        number = 0
        while lanes:
            before = oracle.probability.clone()
            # Any choice that is made before a cycle begins will do: here every shape gets its turn.
            self.cycle.use(number % len(self.cycle.trees))
            paths = self._cycle(oracle, lanes)
            for origins, forks in zip(oracle.origins, oracle.forks, strict=True):
                for slot, script in zip(origins.tolist(), forks, strict=True):
                    state = lanes[slot].state
                    assert state.cycles == number, "a cycle, repeated, takes another course"
                    queues[slot].append(_Lane(state, script))
            oracle.origins.clear()
            oracle.forks.clear()
            chances = (oracle.probability / before).tolist()
            done = {slot: lane for slot, lane in lanes.items() if lane.state.cycles == number}
            if done:
                self._check_states(done)
            for slot, lane in done.items():
                known = oracle.noise(slot, int(self.slots.lengths[slot]))
                told = self._told(slot)
                key = self._settle(lane, paths[slot], known, told, chances[slot])
                self._queue(key, oracle.trace[slot].clone(), queues[slot])
            lanes = {slot: lane for slot, lane in lanes.items() if slot not in done}
            number += 1

    def _cycle(self, oracle: EnumeratingDraws, lanes: dict[int, _Lane]) -> list[Text]:
        """Run one cycle; return the accepted nodes of every slot."""
        used, rule = oracle.used, _Recorder(self.cycle.acceptance)
        active = torch.tensor([slot in lanes for slot in range(oracle.lanes)])
        self.slots.active.copy_(active)
        self.cycle.draws = lambda uniforms: LaneDraws(
            oracle, torch.arange(len(active)), active, self.slots.lengths
        )
        texts = {
            slot: [*self.prompts[lane.state.key[0]], *lane.text] for slot, lane in lanes.items()
        }
        if self.offering:
            self.offering.offer(len(active))
        self.cycle.acceptance = cast("AcceptanceRule", rule)
        try:
            processing = self._processing(texts)
            self.cycle.run(self.slots, self.sampling, self.span, processing)
            for failure in processing.failures.values() if processing else ():
                raise failure
        finally:
            self.cycle.acceptance = rule.rule
        drawn, declared = oracle.used - used, self.cycle.draws_per_cycle
        assert drawn <= declared, f"a cycle read {drawn} uniforms per slot, {declared} are declared"
        outcome = self.slots.outcome.tolist()
        for slot, lane in lanes.items():
            gain, nan, *tokens = outcome[slot]
            assert not nan, f"the cycle reports {nan} after {list(texts[slot])}"
            lane.text += tuple(tokens[:gain])
            if self.offering:
                self.offering.follow(slot, tokens[:gain])
        return rule.paths()

    def _told(self, slot: int) -> bytes:
        """Return what the head keeps of a slot's verifications, by which it may draft."""
        parts = (part[slot].reshape(-1).view(torch.uint8) for part in self.slots.memory)
        return b"".join(bytes(part.tolist()) for part in parts)

    def _settle(
        self, lane: _Lane, path: Text, known: tuple[float, ...], told: bytes, chance: float
    ) -> Key:
        """Note where a lane's cycle led; return the key of that."""
        prompt, _, paths, *_ = lane.state.key
        key = (prompt, lane.text, (*paths, path), known, told)
        if len(lane.text) >= self.tokens:
            lane.state.ends[lane.text[: self.tokens]] += chance
        else:
            lane.state.leads[key] += chance
        return key

    def _check_states(self, lanes: dict[int, _Lane]) -> None:
        """Raise AssertionError where a slot remembers more than its text."""
        found = self.slots.state[list(lanes)]
        texts = [(lane.state.key[0], lane.text) for lane in lanes.values()]
        known = torch.stack(
            [self.memory.setdefault(text, row) for text, row in zip(texts, found, strict=True)]
        )
        torch.testing.assert_close(
            found,
            known,
            atol=_STATE_TOLERANCE,
            rtol=_STATE_TOLERANCE,
            msg=lambda message: f"the head's state depends on more than the text: {message}",
        )
