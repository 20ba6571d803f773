"""THE loop: requests come in, cycles run, tokens go out.

It knows requests and cycles; what a cycle's components do is theirs (see `eagle.cycle`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, overload

import torch

from eagle.cycle import Cycle, Processors, Slots
from eagle.decoding.batch import Batch, Outcome, failed_last
from eagle.decoding.generation import Defaults
from eagle.decoding.inputs import Prompt, intake
from eagle.decoding.requests import Event, Request, Result
from eagle.decoding.uniforms import Feed
from eagle.errors import EagleError, PluginError, SpecError, TargetError, brief
from eagle.host import Seat, Whole
from eagle.plugin import (
    Breach,
    BuildContext,
    Registry,
    RequestAware,
    Role,
    Sampling,
    SamplingParams,
    VaryingTree,
    default_registry,
)
from eagle.runtime import Runtime
from eagle.sizing import fit_tree
from eagle.spec import DecoderSpec, Resolved, load_spec, resolve
from eagle.target import Target, load_target, loading, resolve_device

__all__ = ["Decoder", "resolve_for"]


class Decoder(Whole):
    """A target with a draft head: generates what the target would say, in fewer passes.

    Make one with `from_spec`. It answers one `stream` or `generate` at a time: another thread's is
    refused until that has ended, and a later one of the same thread displaces it. Decoders that
    share a target may run in threads of their own, where they take turns, cycle by cycle. A
    decoder cannot be copied, pickled or sent to another process: make one there.

    Attributes:
        resolved: the spec and its components.
        target: the target model.
        defaults: what the target's generation config does to every text.
    """

    copied = "a decoder (its caches and its target exist once; make it from its spec where needed)"

    def __init__(self, resolved: Resolved, target: Target) -> None:
        with target.turn.held("making a decoder", within=False):
            self._make(resolved, target)

    def _make(self, resolved: Resolved, target: Target) -> None:
        target.probe(resolved.attention)
        resolved.head.load(target, resolved.attention)
        resolved = fit_tree(resolved, target)
        self.resolved, self.target = resolved, target
        applied = resolved.spec.target.generation_config == "apply"
        self.defaults = Defaults(
            target.model.generation_config if applied else None,
            target.info.name,
            target.device,
            target.eos_tokens,
        )
        self._cycle = Cycle(
            target,
            resolved.features,
            resolved.head,
            resolved.tree,
            resolved.attention,
            resolved.acceptance,
        )
        self._runtime = Runtime(self._cycle, resolved.spec.runtime, capturable=resolved.capturable)
        parts = resolved.components.values()
        self._aware = [part for part in parts if isinstance(part, RequestAware)]
        self._slots: Slots | None = None
        self._seat = Seat()
        self._sampling: Sampling | None = None
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
        if target is not None and not isinstance(target, Target):
            raise TargetError(
                f"target should be an eagle.target.Target, not a {type(target).__name__}; a "
                "transformers model becomes one by Target(model, tokenizer, name)"
            )
        if registry is not None and not isinstance(registry, Registry):
            raise PluginError(f"registry should be a Registry, not a {type(registry).__name__}")
        if not isinstance(spec, DecoderSpec):
            spec = load_spec(spec, overrides)
        elif not isinstance(overrides, Sequence) or len(overrides):
            raise SpecError("overrides go with a spec's name or path; a DecoderSpec is complete")
        resolved = resolve_for(spec, registry or default_registry(), target)
        return cls(resolved, target or load_target(spec.target, spec.folder))

    @property
    def spec(self) -> DecoderSpec:
        """The spec that this decoder was built from."""
        return self.resolved.spec

    @property
    def capacity(self) -> int:
        """The longest text, prompt and answer, that this decoder holds, in tokens."""
        return self.spec.runtime.capacity(self.target.capacity)

    # A string is a sequence of strings too; the first of the two is what is meant by it.
    @overload
    def generate(
        self,
        prompts: Prompt,
        params: SamplingParams | Sequence[SamplingParams] | None = ...,
        *,
        processors: Processors | Sequence[Processors | None] | None = ...,
        raw: bool = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        **sampling: Any,
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = ...,
        *,
        processors: Processors | Sequence[Processors | None] | None = ...,
        raw: bool = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        **sampling: Any,
    ) -> list[Result]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        processors: Processors | Sequence[Processors | None] | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Result | list[Result]:
        """Answer one prompt or several.

        A prompt that fails while it is decoded ends the call for all. What was finished by then is
        in the error's `results`, by the prompt's index; `stream` has yielded it.

        Args:
            prompts: a string (a user's message), token ids, a list of ``{"role", "content"}``
                messages, or a list of any of these.
            params: sampling parameters, for all prompts or one for each. One seed for all is the
                first prompt's, and the others derive theirs from it (see `SamplingParams`).
            processors: logits processors as `transformers` has them, a list for all prompts or a
                list (or None) for each. Every one sees each candidate's own prefix, prompt
                included, one text at a time; with temperature and the rest applied after them,
                they define the distribution that is kept. They run on the host, so such cycles
                are slower. See `eagle.cycle.Processor` for what they may not do.
            raw: continue strings as they are, without the chat template.
            chat_template_kwargs: what the chat template reads beside the messages, as in
                ``{"enable_thinking": False}`` or ``{"tools": [...]}``; for all prompts.
            **sampling: fields of `SamplingParams`, instead of *params*.

        Returns:
            A `Result` for one prompt, a list of them, in order, for several.

        Raises:
            RequestError: a prompt or a parameter is not valid, or another thread uses this
                decoder, which is known before anything is decoded; or a logits processor raises
                or keeps state.
            NumericalError: the target or the head produced NaN, or logits processors leave no
                token.
            PluginError: a strategy raises.
        """
        single, requests = self._intake(
            prompts, params, processors, sampling, raw, chat_template_kwargs
        )
        results: dict[int, Result] = {}
        try:
            for event in self._run(requests):
                if event.result is not None:
                    results[event.index] = event.result
        except EagleError as error:
            error.results = results
            raise
        return results[0] if single else [results[i] for i in range(len(requests))]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        processors: Processors | Sequence[Processors | None] | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Answer like `generate`, yielding an `Event` for every cycle of every prompt.

        Parameters are checked at once, before the first event is asked for.
        """
        _, requests = self._intake(prompts, params, processors, sampling, raw, chat_template_kwargs)
        return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> Iterator[Event]:
        stay = self._seat.take()
        waiting, batch = deque(requests), None
        try:
            with self._turn():
                slots = self._allocate(requests)
                feed = Feed(slots.uniforms)
            batch = Batch(slots.root.shape[0], self.target.dtype)
            self._sampling = None
            ahead = False  # whether the next cycle is under way already
            while waiting or batch:
                with self._turn():
                    new, failure = self._admit(slots, waiting, batch)
                for slot, outcome in failed_last(new):
                    yield self._deliver(slots, slot, batch, outcome, verified=False)
                    self._seat.go_on(stay)
                if failure is not None:
                    raise failure
                if batch:
                    with self._turn():
                        if not ahead:
                            self._advance(slots, batch, feed)
                        outcomes = slots.outcome.tolist()
                        batch.note(outcomes)
                        ahead = self._runtime.graph and batch.goes_on(
                            outcomes, waiting=bool(waiting)
                        )
                        if ahead:
                            self._advance(slots, batch, feed)
                    for slot, outcome in failed_last(enumerate(outcomes)):
                        if batch.requests[slot] is not None:
                            yield self._deliver(slots, slot, batch, outcome)
                            self._seat.go_on(stay)
        except Exception:
            if self._seat.holds(stay):
                self._slots = None  # its caches may hold NaN, which masked rows would pass on
            raise
        finally:
            stay.over = True
            if batch is not None:
                self._end_all(batch)

    def _end_all(self, batch: Batch) -> None:
        """Tell components that what is still unfinished is given up."""
        for slot, request in enumerate(batch.requests):
            if request is not None:
                batch.requests[slot] = None
                self._end(slot, request)

    def _end(self, slot: int, request: Request) -> None:
        if self._aware:
            with torch.inference_mode(), self.resolved.blaming():
                for part in self._aware:
                    part.end_request(slot, [*request.prompt, *request.tokens])

    def _turn(self) -> AbstractContextManager[None]:
        """Have the target, for as long as passes are under way; others wait for that long only."""
        return self.target.turn.held("decoding", within=False)

    def _admit(
        self, slots: Slots, waiting: deque[Request], batch: Batch
    ) -> tuple[list[tuple[int, Outcome]], Exception | None]:
        """Read waiting prompts into the free slots.

        Nothing waits for the device in between, so that it reads one prompt after the other.

        Returns:
            These slots and their first outcomes, and what kept the next prompt from being read:
            it costs no answer of those that were read before.
        """
        new = {slot: waiting.popleft() for slot in batch.free[: len(waiting)]}
        if not new:
            return [], None
        device, failure = self.target.device, None
        sampling = [Sampling.of([request.params], device) for request in new.values()]
        uniforms = torch.stack([request.uniforms(1) for request in new.values()]).to(device)
        needs = zip(new.items(), sampling, torch.split(uniforms, 1), strict=True)
        self._sampling = None
        read: list[int] = []
        try:
            with torch.inference_mode(), self.resolved.blaming():
                for (slot, request), own, uniform in needs:
                    request.start()
                    batch.put(slot, request)
                    for part in self._aware:
                        part.begin_request(slot, request.prompt)
                    processing = batch.processing()
                    self._runtime.prefill(slots, slot, request.prompt, own, uniform, processing)
                    read.append(slot)
        except Exception as error:
            failure = error
        outcomes = slots.outcome.tolist()
        return [(slot, outcomes[slot]) for slot in read], failure

    def _advance(self, slots: Slots, batch: Batch, feed: Feed) -> None:
        """Start one cycle for all slots; what the next one draws is sent behind it."""
        if self._sampling is None:
            self._sampling = slots.sampling.become(batch.params)
        if not self._sampling.greedy:
            feed.fill(batch.requests)
        # A cycle that started ahead may have committed what has not been delivered yet.
        committed = batch.longest + self._cycle.depth + 1
        with torch.inference_mode(), self.resolved.blaming():
            tree = self._choose(batch)
            self._runtime.run(slots, self._sampling, committed, batch.processing(), tree)
            if not self._sampling.greedy:
                feed.refill(batch.requests)

    def _choose(self, batch: Batch) -> int:
        """Return which tree the next cycle drafts, by what has been read back already."""
        tree = self.resolved.tree
        if not isinstance(tree, VaryingTree):
            return 0
        chosen = tree.choose(batch.seen)
        if not isinstance(chosen, int) or not 0 <= chosen < len(self._cycle.trees):
            raise Breach(
                Role.TREE,
                f"choose() returned {chosen!r}, which is none of its {len(self._cycle.trees)} "
                "alternatives",
            )
        return chosen

    def _deliver(
        self, slots: Slots, slot: int, batch: Batch, outcome: Outcome, *, verified: bool = True
    ) -> Event:
        """Give a slot's new tokens to its request; let the slot idle if that finishes it."""
        request = batch.requests[slot]
        event = batch.deliver(slot, outcome, verified=verified)
        if event.finish_reason and request is not None:
            self._end(slot, request)
            self._sampling = None
            with self._turn():
                slots.active[slot] = False
                slots.lengths[slot] = 0
        return event

    def _allocate(self, requests: Sequence[Request]) -> Slots:
        """Return idle slots for these requests, allocating anew only where they do not fit."""
        count = self._runtime.slots(len(requests), self.spec.runtime.max_batch)
        longest = max(len(r.prompt) + r.limit for r in requests)
        if self._slots is None or self._slots.root.shape[0] != count or self._capacity < longest:
            rows = self._runtime.rows(longest, self.capacity)
            self._slots = None  # so that an interruption leaves nothing half allocated
            with self.resolved.blaming():
                self._slots, self._capacity = self._runtime.allocate(count, rows), rows
        self._slots.active.zero_()
        self._slots.lengths.zero_()
        return self._slots

    def _intake(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        processors: Processors | Sequence[Processors | None] | None,
        sampling: Mapping[str, Any],
        raw: bool,
        template: Mapping[str, Any] | None,
    ) -> tuple[bool, list[Request]]:
        return intake(
            prompts,
            params,
            processors,
            sampling,
            raw=raw,
            template=template,
            target=self.target,
            defaults=self.defaults,
            capacity=self.capacity,
        )


def resolve_for(spec: DecoderSpec, registry: Registry, target: Target | None = None) -> Resolved:
    """Resolve a spec against its target's configuration, or against a loaded target.

    Raises:
        EagleError: see `Decoder.from_spec`.
    """
    resolve(spec, registry)  # without the target first: a typo should not cost a download
    if target is not None:
        info, device, path = target.info, target.device, target.model.name_or_path
    else:
        source = _located(spec)
        info, device = loading.describe(source)[0], resolve_device(spec.target.device)
        path = source.path
    context = BuildContext(info, device, spec.folder, loading.folder_of(path, spec.target.revision))
    return resolve(spec, registry, context)


def _located(spec: DecoderSpec) -> loading.Source:
    try:
        return loading.locate(spec.target, spec.folder)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, nobody's ~home
        why = getattr(error, "strerror", None) or error
        name = brief(spec.target.model)
        raise TargetError(f"target.model: {name} is no path: {why}") from error
