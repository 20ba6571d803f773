"""What a request asked for and what it has been given so far; knows text, not tensors.

Everything here runs on the host, once per cycle, on the few tokens that a cycle committed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from eagle.cycle import Processors
from eagle.decoding.logprobs import TokenLogprobs
from eagle.decoding.text import LateText, Piece, TextStream, Vocabulary
from eagle.errors import RequestError
from eagle.plugin import SamplingParams, fresh_seed

__all__ = [
    "Event",
    "FinishReason",
    "Request",
    "Result",
    "Stats",
    "stop_tokens",
]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Stats:
    """Figures of one request.

    Attributes:
        new_tokens: tokens given, the first of which comes from the prompt's own pass.
        cycles: verifications.
        tau: tokens committed per verification, the bonus token included.
        accepted_per_cycle: tokens committed by each cycle.
        accepted_per_position: of draft position 1, 2 and so on, in how many cycles its token was
            accepted; without what was cut off behind the text's end.
        seconds: from the request's start to its last token.
        tokens_per_second: new_tokens / seconds.
        time_to_first_token: seconds from the request's start to its first token.
        queued: seconds from when the request was made to its start.
        seconds_per_token: seconds between tokens, from the first to the last; 0 if there is one.
        drafted: candidates that its cycles verified: of each, all nodes of its tree but the root.
    """

    new_tokens: int
    cycles: int
    tau: float
    accepted_per_cycle: tuple[int, ...]
    seconds: float
    tokens_per_second: float
    time_to_first_token: float
    queued: float = 0.0
    accepted_per_position: tuple[int, ...] = ()
    seconds_per_token: float = 0.0
    drafted: int = 0


@dataclass(frozen=True)
class Event:
    """What one cycle gave to one request.

    Attributes:
        index: which prompt.
        tokens: the tokens committed, in order; the last of a cycle is its bonus token.
        pieces: the text that became certain, piece by piece; often it is made when it is first
            looked at.
        finish_reason: None until the request is finished.
        result: the whole result, with the last event only.
        logprobs: of its tokens, where the request asked for them.
        drafted: how many of its tokens, the first ones, are accepted draft tokens. One behind them
            is the cycle's bonus token, or the first token of all, which the prompt's pass gives.
    """

    index: int
    tokens: tuple[int, ...]
    pieces: tuple[Piece, ...]
    finish_reason: FinishReason | None = None
    result: Result | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    drafted: int = 0

    @classmethod
    def late(cls, text: LateText, cycle: int, **known: Any) -> Event:
        """Return an event whose pieces are made when they are looked at.

        Args:
            text: of its request.
            cycle: its number there.
            **known: all else.
        """
        event = cls.__new__(cls)
        # Not by the constructor, which takes its time for what is frozen.
        vars(event).update(known, _late=text, _cycle=cycle)
        return event

    if not TYPE_CHECKING:  # which would take it for all attributes that there may be

        def __getattr__(self, name: str) -> Any:
            """Make the pieces, which are the one attribute that may not be there yet."""
            if name != "pieces" or "_late" not in vars(self):
                raise AttributeError(f"an event has no attribute {name!r}")
            return vars(self).setdefault("pieces", self._late.pieces(self._cycle))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: the pieces, not what would make them."""
        known = {**vars(self), "pieces": self.pieces}
        return {name: known[name] for name in known if name not in ("_late", "_cycle")}

    @property
    def text(self) -> str:
        """The text of all pieces."""
        return "".join([piece.text for piece in self.pieces])


@dataclass(frozen=True)
class Result:
    """A finished request.

    Attributes:
        text: without special tokens; ends before a stop string.
        tokens: ids, an end-of-text token or the tokens of a stop string included.
        finish_reason: ``stop`` (end-of-text token or stop string) or ``length``.
        stats: figures.
        prompt_tokens: ids of the prompt, the chat template applied.
        seed: of its chance. Where it had been given, it gives this result again. Where nobody gave
            one, it does so if trees do not follow the batch or draw by `Law.SHARED_NOISE`. On a GPU
            the default tree does follow it then, and for a given seed follows the decoder's slots:
            the seed may say another text where five requests or more were decoded at once, or where
            the decoder has 16 slots or more.
        logprobs: of its tokens, in order, where the request asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats
    prompt_tokens: tuple[int, ...]
    seed: int
    logprobs: tuple[TokenLogprobs, ...] | None = None


def stop_tokens(stops: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """Return the ids of the stop strings that are special tokens, of which no text is made.

    Args:
        stops: strings that end a text.
        tokenizer: the target's, or None.

    Raises:
        RequestError: a stop string holds a special token beside other text, which would never be
            found.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}) if stops else {}
    special = {token.content: number for number, token in added.items() if token.special}
    for stop in stops:
        held = [token for token in special if token in stop and stop not in special]
        if held:
            raise RequestError(
                f"the stop string {stop!r} holds the special token {held[0]!r}, which is left out "
                "of the text, so it would never be found; give the special token by itself"
            )
    return frozenset(special[stop] for stop in stops if stop in special)


@dataclass(eq=False)
class Request:
    """One prompt on its way: its tokens so far, its text, and its own source of randomness.

    Attributes:
        seed: of that source: the parameters' own, or one that the operating system drew.
        key: of the noise of the text's positions, which follows from the seed.
        given: its own logits processors as they were given, which `processors` were made of.
        packed: the same, as other processes can have them.
        candidates: how many its cycles verified.
    """

    index: int
    prompt: list[int]
    params: SamplingParams
    limit: int
    eos: frozenset[int]
    tokenizer: Any
    processors: Processors = ()
    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    given: Processors = ()
    packed: bytes = b""
    candidates: int = 0

    def __post_init__(self) -> None:
        vocabulary = None if self.tokenizer is None else Vocabulary.of(self.tokenizer)
        # Only a stop string needs the text of a token to be known before the next one comes.
        late = vocabulary is not None and vocabulary.fast and not self.params.stop
        self._late = LateText(self.tokenizer) if late else None
        self._watched = None if late else TextStream(self.tokenizer, self.params.stop)
        self._vocabulary = vocabulary
        self._ends = stop_tokens(self.params.stop, self.tokenizer)
        if not self.params.ignore_eos:
            self._ends |= self.eos
        seed = self.params.seed
        self.draw_from(fresh_seed() if seed is None else seed)
        self._made = self._started = time.perf_counter()
        self._first = self._last = 0.0

    def draw_from(self, seed: int) -> None:
        """Begin the source of randomness anew, from a seed."""
        self.seed = seed
        digest = hashlib.sha256(f"{seed}/noise".encode()).digest()
        self.key = int.from_bytes(digest[:8], signed=True)
        # Not torch.Generator, for which seeds that are equal modulo 2**32 are one.
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def start(self) -> None:
        """Start the clock: the request's prompt is about to be read."""
        self._started = time.perf_counter()

    def uniforms(self, count: int) -> torch.Tensor:
        """Return the next *count* uniforms of this request, float64 in [0, 1)."""
        return torch.from_numpy(self._generator.random(count))

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """Return whether these tokens end the request, as far as their ids tell."""
        if len(self.tokens) + len(tokens) >= self.limit:
            return True
        return not self._ends.isdisjoint(tokens)

    def deliver(
        self,
        tokens: Sequence[int],
        *,
        verified: bool = True,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> Event:
        """Take in the tokens of one cycle, up to the one that ends the request.

        Args:
            tokens: accepted draft tokens and, last, the bonus token.
            verified: False for the first token, which the prompt's own pass gives.
            logprobs: of the tokens, where they are asked for.
        """
        watched, room = self._watched, self.limit - len(self.tokens)
        count, last = 0, len(tokens) - 1
        for count, token in enumerate(tokens, 1):
            stopped = watched is not None and watched.push(token, drafted=count <= last)
            if stopped or token in self._ends:
                self.finish_reason = "stop"
            elif count >= room:
                self.finish_reason = "length"
            if self.finish_reason:
                break
        given, drafted = tuple(tokens[:count]), min(count, last)
        self.tokens += given
        if verified:
            self.accepted.append(count)
            self.drafted.append(drafted)
        own = None
        if self.params.logprobs is not None:
            own = tuple(logprobs[:count])
            self.logprobs += own
        self._last = time.perf_counter()
        self._first = self._first or self._last
        final = self.finish_reason is not None
        pieces: tuple[Piece, ...] = ()
        if watched is not None:
            pieces = watched.take(final=final)
            if watched.stopped:  # also by text that only the last token settled
                self.finish_reason = "stop"
        reason = self.finish_reason
        result = self.result() if reason else None
        if self._late is None:
            return Event(self.index, given, pieces, reason, result, own, drafted)
        return Event.late(
            self._late,
            self._late.tell(given, drafted, final=final),
            index=self.index,
            tokens=given,
            finish_reason=reason,
            result=result,
            logprobs=own,
            drafted=drafted,
        )

    def result(self) -> Result:
        """Return what the request has been given."""
        seconds, cycles = self._last - self._started, len(self.accepted)
        stats = Stats(
            new_tokens=len(self.tokens),
            cycles=cycles,
            tau=sum(self.accepted) / cycles if cycles else 0.0,
            accepted_per_cycle=tuple(self.accepted),
            seconds=seconds,
            tokens_per_second=len(self.tokens) / seconds if seconds else 0.0,
            time_to_first_token=self._first - self._started,
            queued=self._started - self._made,
            accepted_per_position=_by_position(self.drafted),
            seconds_per_token=(self._last - self._first) / max(len(self.tokens) - 1, 1),
            drafted=self.candidates,
        )
        reason = self.finish_reason or "length"
        prompt = tuple(self.prompt)
        found = None if self.params.logprobs is None else tuple(self.logprobs)
        return Result(self._said(), tuple(self.tokens), reason, stats, prompt, self.seed, found)

    def _said(self) -> str:
        if self._watched is not None:
            return self._watched.text
        assert self._vocabulary is not None
        return self._vocabulary.decode(self.tokens)


def _by_position(drafted: Sequence[int]) -> tuple[int, ...]:
    """Return how often each draft position was accepted, of how many were in each cycle."""
    return tuple(
        sum(count > place for count in drafted) for place in range(max(drafted, default=0))
    )
