"""THE loop: requests come in, cycles run, tokens go out.

It knows requests and cycles; what a cycle's components do is theirs (see `eagle.cycle`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError

from eagle import loading
from eagle.cycle import Cycle, Slots
from eagle.errors import EagleError, NumericalError, RequestError
from eagle.explain import explain
from eagle.registry import Registry, default_registry
from eagle.requests import Event, Prompt, Request, Result, encode
from eagle.roles import BuildContext
from eagle.sampling import Sampling, SamplingParams
from eagle.spec import DecoderSpec, Resolved, load_spec, resolve
from eagle.target import Target, load_target

__all__ = ["Decoder"]

_ROUND = 256  # caches grow in steps of this many rows, so that they are seldom allocated again
_NAN = {1: "the target", 2: "the draft head", 3: "the target and the draft head"}
_IDLE = SamplingParams(max_new_tokens=1)


class Decoder:
    """A target with a draft head: generates what the target would say, in fewer passes.

    Make one with `from_spec`. It is not thread-safe: one `stream` or `generate` at a time.

    Attributes:
        resolved: the spec and its components.
        target: the target model.
    """

    def __init__(self, resolved: Resolved, target: Target) -> None:
        self.resolved, self.target = resolved, target
        target.probe(resolved.attention)
        resolved.head.load(target, resolved.attention)
        self._cycle = Cycle(
            target,
            resolved.features,
            resolved.head,
            resolved.tree,
            resolved.attention,
            resolved.acceptance,
        )
        self._slots: Slots | None = None
        self._capacity = 0

    @classmethod
    def from_spec(
        cls,
        spec: str | Path | DecoderSpec = "eagle",
        overrides: Sequence[str] = (),
        *,
        registry: Registry | None = None,
        target: Target | None = None,
    ) -> Decoder:
        """Build a decoder.

        Args:
            spec: name of a shipped spec, path of a YAML file, or a `DecoderSpec`.
            overrides: ``path.to.key=value`` each, for a name or a path.
            registry: strategies to choose from; by default those of all installed plug-ins.
            target: a loaded target to use instead of the spec's; decoders may share one.

        Raises:
            SpecError: the spec is wrong, or its strategies do not go together.
            PluginError: a strategy is unknown or its plug-in is broken.
            TargetError: the target cannot be loaded or served.
            CheckpointError: the head's checkpoint does not fit.
            AssetError: the embedded model cannot be fetched.
        """
        if not isinstance(spec, DecoderSpec):
            spec = load_spec(spec, overrides)
        elif overrides:
            raise TypeError("overrides go with a spec's name or path; a DecoderSpec is complete")
        registry = registry or default_registry()
        # First without the target: a typo should not cost a download.
        resolve(spec, registry)
        info = target.info if target else loading.describe(loading.locate(spec.target))[0]
        context = BuildContext(target=info, folder=spec.folder)
        resolved = resolve(spec, registry, context)
        return cls(resolved, target or load_target(spec.target))

    @property
    def spec(self) -> DecoderSpec:
        """The spec that this decoder was built from."""
        return self.resolved.spec

    @property
    def capacity(self) -> int:
        """The longest text, prompt and answer, that this decoder holds, in tokens."""
        wanted = self.spec.runtime.max_length
        return self.target.capacity if wanted == "auto" else min(wanted, self.target.capacity)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        raw: bool = False,
        **sampling: Any,
    ) -> Any:
        """Answer one prompt or several.

        Args:
            prompts: a string (a user's message), token ids, a list of ``{"role", "content"}``
                messages, or a list of any of these.
            params: sampling parameters, for all prompts or one for each.
            raw: continue strings as they are, without the chat template.
            **sampling: fields of `SamplingParams`, instead of *params*.

        Returns:
            A `Result` for one prompt, a list of them, in order, for several.

        Raises:
            RequestError: a prompt or a parameter is not valid.
            NumericalError: the target or the head produced NaN.
        """
        single, requests = self._requests(prompts, params, raw, sampling)
        results: dict[int, Result] = {}
        for event in self._run(requests):
            if event.result is not None:
                results[event.index] = event.result
        return results[0] if single else [results[i] for i in range(len(requests))]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        raw: bool = False,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Answer like `generate`, yielding an `Event` for every cycle of every prompt.

        Parameters are checked at once, before the first event is asked for.
        """
        _, requests = self._requests(prompts, params, raw, sampling)
        return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> Iterator[Event]:
        waiting = deque(requests)
        slots = self._allocate(requests)
        running: list[Request | None] = [None] * slots.root.shape[0]
        while waiting or any(running):
            for slot, request in enumerate(running):
                if request is None and waiting:
                    running[slot] = waiting.popleft()
                    yield from self._admit(slots, slot, running)
            if any(running):
                self._advance(slots, running)
                for slot, outcome in enumerate(slots.outcome.tolist()):
                    yield from self._deliver(slots, slot, running, outcome)

    def _admit(self, slots: Slots, slot: int, running: list[Request | None]) -> Iterator[Event]:
        """Read a request's prompt into a slot and deliver its first token."""
        request = cast("Request", running[slot])
        request.start()
        sampling = Sampling.of([request.params], self.target.device)
        with torch.inference_mode(), self._blame():
            uniform = request.uniforms(1)[None].to(self.target.device)
            self._cycle.prefill(slots, slot, request.prompt, sampling, uniform)
            outcome = slots.outcome[slot].tolist()
        yield from self._deliver(slots, slot, running, outcome, verified=False)
        # Idle slots are greedy, so that they keep no one from the greedy path.
        params = [r.params if r else _IDLE for r in running]
        self._sampling = Sampling.of(params, self.target.device)

    def _advance(self, slots: Slots, running: Sequence[Request | None]) -> None:
        """Run one cycle for all slots."""
        if not self._sampling.greedy:
            for slot, request in enumerate(running):
                if request is not None:
                    slots.uniforms[slot] = request.uniforms(slots.uniforms.shape[1])
        committed = max(len(r.prompt) + len(r.tokens) for r in running if r is not None)
        with torch.inference_mode(), self._blame():
            self._cycle.run(slots, self._sampling, self._cycle.span(committed))

    def _deliver(
        self,
        slots: Slots,
        slot: int,
        running: list[Request | None],
        outcome: Sequence[int],
        *,
        verified: bool = True,
    ) -> Iterator[Event]:
        """Give a slot's new tokens to its request; free the slot if that finishes it."""
        request = running[slot]
        if request is None:
            return
        count, nan, *tokens = outcome
        if nan:
            raise NumericalError(
                f"{_NAN[nan]} produced NaN after {len(request.tokens)} tokens of prompt "
                f"{request.index}; no token can be chosen from that (its weights may be damaged, "
                f"or {self.target.dtype} too narrow for it: try target.dtype=float32)"
            )
        event = request.deliver(tokens[:count], verified=verified)
        if event.finish_reason:
            running[slot] = None
            slots.active[slot] = False
            slots.lengths[slot] = 0
        yield event

    def _allocate(self, requests: Sequence[Request]) -> Slots:
        """Return idle slots for these requests, allocating anew only where they do not fit."""
        count = min(len(requests), self.spec.runtime.max_batch)
        longest = max(len(r.prompt) + r.limit for r in requests)
        if self._slots is None or self._slots.root.shape[0] != count or self._capacity < longest:
            self._capacity = min(-(-longest // _ROUND) * _ROUND, self.capacity)
            self._slots = self._cycle.allocate(count, self._capacity)
        self._slots.active.zero_()
        self._slots.lengths.zero_()
        return self._slots

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        raw: bool,
        sampling: Mapping[str, Any],
    ) -> tuple[bool, list[Request]]:
        single = isinstance(prompts, str) or (
            len(prompts) > 0 and isinstance(prompts[0], (int, Mapping))
        )
        many = [cast("Prompt", prompts)] if single else list(cast("Sequence[Prompt]", prompts))
        if not many:
            raise RequestError("there is no prompt; give at least one")
        each = _each(params, sampling, len(many))
        return single, [
            self._request(i, prompt, p, raw)
            for i, (prompt, p) in enumerate(zip(many, each, strict=True))
        ]

    def _request(self, index: int, prompt: Prompt, params: SamplingParams, raw: bool) -> Request:
        target = self.target
        ids = encode(prompt, target.tokenizer, raw=raw, vocab_size=target.info.vocab_size)
        room = self.capacity - len(ids)
        if room < 1:
            raise RequestError(
                f"prompt {index} has {len(ids)} tokens, but this decoder holds {self.capacity} "
                "with the answer (runtime.max_length, bounded by the target); shorten the prompt"
            )
        if params.stop and target.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this target has none")
        limit = min(params.max_new_tokens, room)
        return Request(index, ids, params, limit, target.eos_tokens, target.tokenizer)

    @contextmanager
    def _blame(self) -> Iterator[None]:
        """Let an exception that a plug-in raises name the plug-in."""
        try:
            yield
        except EagleError:
            raise
        except Exception as error:
            culprit = self.resolved.blame(error)
            if culprit is None:
                raise
            raise culprit from error


def _each(
    params: SamplingParams | Sequence[SamplingParams] | None,
    sampling: Mapping[str, Any],
    count: int,
) -> list[SamplingParams]:
    """Return the sampling parameters of each of *count* prompts."""
    if params is not None and sampling:
        raise TypeError(f"give either params or {', '.join(sampling)}, not both")
    if isinstance(params, SamplingParams):
        return [params] * count
    if params is not None:
        if len(params) != count:
            raise RequestError(f"{len(params)} sampling parameters were given for {count} prompts")
        return list(params)
    try:
        return [SamplingParams(**sampling)] * count
    except ValidationError as error:
        problems = explain(error, SamplingParams, sampling)
        raise RequestError(
            "; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in problems.items())
        ) from error
