"""From a checked body to requests of an engine: prompts, parameters, logits processors.

It knows the engine and the interface's fields; it does not know HTTP or how answers are written.
A long prompt takes a while to become tokens, and a schema to be compiled: what is not light is for
a thread of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import RepetitionPenaltyLogitsProcessor

from eagle.cycle import Processor
from eagle.decoding import Engine, Handle, encode
from eagle.errors import RequestError
from eagle.plugin import SamplingParams, derived_seed
from eagle.serve.problems import Problem, problem_of
from eagle.serve.schemas import ChatRequest, CompletionRequest, Message, SamplingRequest
from eagle.serve.settings import Settings
from eagle.serve.structure import structure_of

__all__ = ["Asked", "Intake", "conversation"]

_LIGHT = 4096  # bytes of a body, which become tokens in a millisecond
_COMPLETION = 16  # tokens of a completion that asks for no number, as OpenAI has it


@dataclass(eq=False)
class Asked:
    """The requests of an engine that one body became.

    Attributes:
        handles: one for each answer, those to one prompt together.
        prompts: tokens of each prompt.
        why: what ended them before they were answered.
    """

    handles: list[Handle]
    prompts: list[int]
    why: Problem | None = field(default=None)

    def stop(self, why: Problem) -> None:
        """Let nothing more come of those that are not answered."""
        if not all(handle.done for handle in self.handles):
            self.why = self.why or why
            self.cancel()

    def cancel(self) -> int:
        """Cancel what is not answered; return how many that were."""
        return sum(handle.cancel() for handle in self.handles if not handle.done)


class Intake:
    """Submits what bodies ask for.

    Args:
        engine: what answers.
        settings: limits.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._target = engine.decoder.target

    def is_light(self, body: SamplingRequest, size: int) -> bool:
        """Whether a body is submitted in less time than a thread takes to begin and to say so.

        Args:
            body: what is asked.
            size: its bytes.
        """
        structured = body.structured_outputs or getattr(body, "response_format", None)
        several = (body.n or 1) > 1 or isinstance(getattr(body, "prompt", None), list)
        fast = getattr(self._target.tokenizer, "is_fast", False)
        return size <= _LIGHT and not structured and not several and fast

    def submit(self, body: SamplingRequest) -> Asked:
        """Submit all that a body asks for, or nothing.

        Raises:
            Problem: a field cannot be honoured, or too many requests wait.
        """
        count = body.n or 1
        if isinstance(body, ChatRequest):
            self._check_number(1, count)
            prompts, param = [self._chat(body)], "messages"
            limit = body.max_completion_tokens or body.max_tokens or self._settings.default_tokens
        else:
            assert isinstance(body, CompletionRequest)
            given = _prompts(body)
            self._check_number(len(given), count)
            prompts, param = self._texts(given), "prompt"
            limit = body.max_tokens or _COMPLETION
        capacity = self._engine.decoder.capacity
        for ids in prompts:
            if len(ids) >= capacity:
                raise Problem(
                    400,
                    f"this model's maximum context length is {capacity} tokens, but the prompt has "
                    f"{len(ids)}; shorten it",
                    param=param,
                    code="context_length_exceeded",
                )
        params = self._params(body, limit)
        handles: list[Handle] = []
        structure = structure_of(body, self._target.tokenizer)
        try:
            for ids in prompts:
                processors = [*_repetition(body), *structure]
                for _ in range(count):
                    own = params.model_copy(update={"seed": _seed(body, len(handles))})
                    handles.append(self._engine.submit(ids, own, processors=processors))
        except Exception as error:
            for handle in handles:
                handle.cancel()
            field = "stop" if "stop string" in str(error) else None
            raise problem_of(error, wait=self._wait(), param=field) from error
        return Asked(handles, [len(ids) for ids in prompts])

    def _wait(self) -> int:
        """Return after how many seconds a place in the queue should be free, roughly."""
        stats = self._engine.stats()
        longest = stats.slots * self._settings.default_tokens / max(stats.tokens_per_second, 1)
        return max(1, min(60, math.ceil(longest / max(stats.waiting, 1))))

    def _chat(self, body: ChatRequest) -> list[int]:
        template = dict(body.chat_template_kwargs or {})
        if body.tools and body.tool_choice != "none":
            template["tools"] = body.tools
        try:
            return encode(
                conversation(body.messages),
                self._target.tokenizer,
                raw=False,
                embeddings=self._target.embeddings,
                template=template,
            )
        except RequestError as error:
            text = str(error)
            param = "messages"
            if text.startswith("chat_template_kwargs"):
                param = "tools" if "'tools'" in text else "chat_template_kwargs"
            raise Problem(400, text, param=param) from error

    def _check_number(self, prompts: int, count: int) -> None:
        """Refuse too many answers, before a prompt becomes tokens, which takes its time."""
        if prompts * count > self._settings.max_choices:
            raise Problem(
                400,
                f"{prompts} prompts with {count} answers each are more than the "
                f"{self._settings.max_choices} answers that one request may have",
                param="n",
            )

    def _texts(self, many: Sequence[Any]) -> list[list[int]]:
        target = self._target
        try:
            return [
                encode(text, target.tokenizer, raw=True, embeddings=target.embeddings)
                for text in many
            ]
        except RequestError as error:
            raise Problem(400, str(error), param="prompt") from error

    def _params(self, body: SamplingRequest, limit: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=limit,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(body.top_k or 0, 0),
            min_p=body.min_p or 0.0,
            stop=body.stops,
            ignore_eos=bool(body.ignore_eos),
            logprobs=_logprobs(body),
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            logit_bias=self._biases(body.logit_bias or {}),
        )

    def _biases(self, given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        size = self._target.info.vocab_size
        for token in given:
            if not (token.isascii() and token.isdigit()) or len(token) > 10 or int(token) >= size:
                raise Problem(
                    400,
                    f"logit_bias should have token ids from 0 to {size - 1}, not {token[:20]!r}",
                    param="logit_bias",
                )
        return tuple((int(token), bias) for token, bias in given.items())


def _seed(body: SamplingRequest, index: int) -> int | None:
    """Return the seed of one of the answers; None where none was given, and each draws its own."""
    return None if body.seed is None else derived_seed(body.seed & (2**63 - 1), index)


def _prompts(body: CompletionRequest) -> list[Any]:
    given: Any = body.prompt
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def _repetition(body: SamplingRequest) -> list[Processor]:
    """Return what changes the logits beside the parameters of the library."""
    if body.repetition_penalty in (None, 1.0):
        return []
    return [RepetitionPenaltyLogitsProcessor(body.repetition_penalty)]


def _logprobs(body: SamplingRequest) -> int | None:
    """Return of how many candidates the log probabilities are wanted beside the chosen one's."""
    if isinstance(body, ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    assert isinstance(body, CompletionRequest)
    return body.logprobs


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates read them.

    Raises:
        Problem: a tool's arguments are not JSON.
    """
    found = []
    for index, message in enumerate(messages):
        one: dict[str, Any] = {
            # Templates know nothing of developers, who took the system's place in OpenAI's.
            "role": "system" if message.role == "developer" else message.role,
            "content": _text(message),
        }
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(message, name)) is not None:
                one[name] = value
        if message.tool_calls:
            one["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": _arguments(call.function.arguments, index),
                    },
                }
                for call in message.tool_calls
            ]
        found.append(one)
    return found


def _text(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _arguments(text: str, index: int) -> Any:
    try:
        return json.loads(text or "{}")  # templates write them down themselves
    except (ValueError, RecursionError) as error:
        raise Problem(
            400, "a tool call's arguments should be JSON", param=f"messages[{index}].tool_calls"
        ) from error
