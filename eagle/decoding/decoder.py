"""A target with a draft head: built from a spec, asked for answers; how they come is the loop's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, overload

from eagle.cycle import Cycle, Processors
from eagle.decoding.driving import answers
from eagle.decoding.generation import Defaults
from eagle.decoding.inputs import Prompt, intake
from eagle.decoding.loop import Loop
from eagle.decoding.pickled import packed
from eagle.decoding.requests import Event, Request, Result
from eagle.decoding.resolving import resolve_for
from eagle.errors import EagleError, PluginError, SpecError, TargetError
from eagle.host import Whole
from eagle.plugin import LearnsCosts, Registry, SamplingParams, default_registry
from eagle.runtime import Runtime, check_capturable
from eagle.sizing import fit_tree, learn_costs
from eagle.spec import DecoderSpec, Resolved, load_spec
from eagle.target import Target, load_target

__all__ = ["Decoder"]


class Decoder(Whole):
    """A target with a draft head: generates what the target would say, in fewer passes.

    Make one with `from_spec`. Any number of `stream` and `generate` may be under way, in one thread
    or in several: all their prompts are decoded together, by whichever caller waits, and each says
    what it says alone. A stream that is closed or collected leaves nothing behind. Decoders that
    share a target take turns, pass by pass. For requests that come at any time there is
    `eagle.Engine`, which decodes in a thread of its own. A decoder cannot be copied, pickled or
    sent to another process: make one there.

    Attributes:
        resolved: the spec and its components.
        target: the target model.
        defaults: what the target's generation config does to every text.
        loop: what its requests go through.
    """

    copied = "a decoder (its caches and its target exist once; make it from its spec where needed)"

    def __init__(self, resolved: Resolved, target: Target) -> None:
        with target.turn.held("making a decoder", within=False):
            self._make(resolved, target)

    def _make(self, resolved: Resolved, target: Target) -> None:
        if target.together is not None:
            target.together.agree("spec", resolved.spec.model_dump(mode="json"))
        check_capturable(resolved, target.device, speaks=target.leads)
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
        runtime = resolved.spec.runtime
        self._runtime = Runtime(self._cycle, runtime, capturable=resolved.capturable)
        self.loop = Loop(
            self._cycle,
            self._runtime,
            resolved,
            limit=self._runtime.limit(runtime.max_batch, self.capacity),
            capacity=self.capacity,
            sized=partial(learn_costs, resolved, target)
            if isinstance(resolved.tree, LearnsCosts)
            else None,
        )
        self._checking = threading.Lock()  # a tokenizer is one thread's at a time

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
        return cls(resolved, target or load_target(spec.target, spec.folder, spec.runtime.quantize))

    @property
    def spec(self) -> DecoderSpec:
        """The spec that this decoder was built from."""
        return self.resolved.spec

    @property
    def max_batch(self) -> int:
        """Requests decoded at once, at most."""
        return self.loop.seats.limit

    @property
    def captured(self) -> int:
        """How many graphs were captured so far; each took time that no later cycle takes."""
        return self._runtime.captured

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
            RequestError: a prompt or a parameter is not valid, or there will never be memory for
                the text, which is known before anything is decoded; or a logits processor raises
                or keeps state, or asks this decoder.
            NumericalError: the target or the head produced NaN, or logits processors leave no
                token.
            PluginError: a strategy raises.
        """
        single, requests = self.intake(
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
        _, requests = self.intake(prompts, params, processors, sampling, raw, chat_template_kwargs)
        return self._run(requests)

    def forget(self) -> None:
        """Forget the texts that were decoded, which those that begin alike would go on from."""
        self.loop.forget()

    def flow(
        self, more: Callable[[int], Sequence[tuple[Prompt, SamplingParams]]]
    ) -> Iterator[Event]:
        """Answer like `stream`, asking for prompts while others are answered.

        Args:
            more: is asked before each pass, with the number of prompts that are under way; returns
                further ones, each with its parameters. Once nothing is under way and nothing comes,
                that was all. Events count prompts in the order in which they came.
        """
        numbers = count()

        def requests(left: int) -> Sequence[Request]:
            asked = more(left)
            if not asked:
                return ()
            prompts, params = zip(*asked, strict=True)
            _, made = self.intake(prompts, params, None, {}, raw=False, template=None)
            for request in made:
                request.index = next(numbers)
            return made

        return answers(self.loop, requests)

    def _run(self, requests: Sequence[Request]) -> Iterator[Event]:
        given = [requests]
        return answers(self.loop, lambda left: given.pop() if given else ())

    def intake(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        processors: Processors | Sequence[Processors | None] | None,
        sampling: Mapping[str, Any],
        raw: bool,
        template: Mapping[str, Any] | None,
    ) -> tuple[bool, list[Request]]:
        """Make requests of prompts that can be answered here; see `eagle.decoding.inputs`.

        Raises:
            RequestError: a prompt or a parameter is not valid, or there will never be memory for
                the text.
        """
        single, requests = self._made(prompts, params, processors, sampling, raw, template)
        if self.loop.lead is not None:
            for request in requests:
                request.packed = packed(request.given, self.target.tokenizer)
        elif (together := self.target.together) is not None:
            together.agree("request", [[r.prompt, r.params.model_dump()] for r in requests])
            for request, seed in zip(
                requests, together.share([r.seed for r in requests]), strict=True
            ):
                request.draw_from(seed)
        for request in requests:
            self.loop.seats.check(request)
        return single, requests

    def again(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        processors: Processors,
        index: int,
        seed: int,
    ) -> Request:
        """Make a request that another process has made of the same.

        Args:
            prompt: its token ids.
            params: its sampling parameters.
            processors: its own logits processors, as they were given.
            index: of its prompt among those that it was asked with.
            seed: of its chance.
        """
        _, (request,) = self._made(prompt, params, processors, {}, raw=False, template=None)
        request.index = index
        request.draw_from(seed)
        return request

    def _made(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        processors: Processors | Sequence[Processors | None] | None,
        sampling: Mapping[str, Any],
        raw: bool,
        template: Mapping[str, Any] | None,
    ) -> tuple[bool, list[Request]]:
        with self._checking:
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
