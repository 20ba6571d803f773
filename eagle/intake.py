"""From what a caller gives to requests: prompts, parameters and processors, checked and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from pydantic import ValidationError

from eagle.errors import RequestError
from eagle.explain import explain
from eagle.processing import Processors, processors_of_each
from eagle.requests import Request
from eagle.sampling import SamplingParams
from eagle.target import Target
from eagle.templating import template_tokens
from eagle.text import half_surrogate

__all__ = ["Prompt", "encode", "intake"]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A user's message, token ids (a tensor or array of them, too), or a conversation of
``{"role", "content"}`` messages."""

_KINDS = "a prompt is a string, a list of token ids, or a list of {'role', 'content'} messages"


def intake(
    prompts: Prompt | Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
    processors: Processors | Sequence[Processors | None] | None,
    sampling: Mapping[str, Any],
    *,
    raw: bool,
    target: Target,
    capacity: int,
) -> tuple[bool, list[Request]]:
    """Make a request of every prompt; see `Decoder.generate` for what may be given.

    Args:
        prompts: one or several.
        params: for all, or for each.
        processors: for all, or for each.
        sampling: fields of `SamplingParams`, instead of *params*.
        raw: continue strings as they are.
        target: what answers them.
        capacity: tokens that a slot holds at most, prompt and answer.

    Returns:
        Whether there was one prompt rather than a list, and the requests.

    Raises:
        RequestError: a prompt or a parameter is not valid.
    """
    prompts = _listed(prompts)
    single = isinstance(prompts, str) or (
        len(prompts) > 0 and isinstance(prompts[0], (Integral, Mapping))
    )
    many = [cast("Prompt", prompts)] if single else list(cast("Sequence[Prompt]", prompts))
    if not many:
        raise RequestError("there is no prompt; give at least one")
    each = _params_of_each(params, sampling, len(many))
    own = processors_of_each(processors, len(many))
    return single, [
        _request(i, prompt, p, o, raw, target, capacity)
        for i, (prompt, p, o) in enumerate(zip(many, each, own, strict=True))
    ]


def _request(
    index: int,
    prompt: Prompt,
    params: SamplingParams,
    processors: Processors,
    raw: bool,
    target: Target,
    capacity: int,
) -> Request:
    ids = encode(prompt, target.tokenizer, raw=raw, embeddings=target.embeddings)
    room = capacity - len(ids)
    if room < 1:
        raise RequestError(
            f"prompt {index + 1} has {len(ids)} tokens, but this decoder holds {capacity} "
            "with the answer (runtime.max_length, bounded by the target); shorten the prompt"
        )
    if params.stop and target.tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this target has none")
    limit = min(params.max_new_tokens, room)
    return Request(index, ids, params, limit, target.eos_tokens, target.tokenizer, processors)


def encode(prompt: Prompt, tokenizer: Any, *, raw: bool, embeddings: int) -> list[int]:
    """Turn a prompt into token ids.

    Args:
        prompt: see `Prompt`.
        tokenizer: the target's, or None.
        raw: continue a string as it is, instead of answering it as a user's message.
        embeddings: rows of the target's input embedding; ids must be below it.

    Raises:
        RequestError: the prompt is empty, or not of a kind that can be encoded.
    """
    ids = _ids(_listed(prompt), tokenizer, raw=raw)
    if not ids:
        raise RequestError("the prompt is empty; give at least one word, or token ids")
    bad = [token for token in ids if not 0 <= token < embeddings]
    if bad:
        raise RequestError(
            f"the prompt holds token id {bad[0]}; this target's ids are 0 to {embeddings - 1}"
        )
    return ids


def _listed(prompts: Any) -> Any:
    """Return a prompt or several of them, of a tensor or an array as lists.

    Raises:
        RequestError: they are something else.
    """
    if not isinstance(prompts, str) and hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if not isinstance(prompts, (str, Sequence)) or isinstance(prompts, bytes):
        raise RequestError(f"{_KINDS}, not {type(prompts).__name__}")
    return prompts


def _check_text(text: Any) -> None:
    if isinstance(text, str) and (place := half_surrogate(text)) is not None:
        raise RequestError(
            f"the prompt is not text that UTF-8 can hold: character {place} is "
            f"{text[place]!a}, half of a surrogate pair or a byte that was not UTF-8"
        )


def _ids(prompt: Prompt, tokenizer: Any, *, raw: bool) -> list[int]:
    if not isinstance(prompt, str) and all(isinstance(token, Integral) for token in prompt):
        return [int(token) for token in cast("Sequence[int]", prompt)]
    if isinstance(prompt, str) and not prompt.strip() and not raw:
        return []
    if tokenizer is None:
        raise RequestError("this target has no tokenizer; give the prompt as token ids")
    if isinstance(prompt, str) and (raw or not tokenizer.chat_template):
        _check_text(prompt)
        return list(tokenizer(prompt)["input_ids"])
    if not isinstance(prompt, str) and not all(isinstance(m, Mapping) for m in prompt):
        raise RequestError(_KINDS)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    for message in cast("list[Mapping[str, Any]]", messages):
        _check_text(message.get("content"))
    if not tokenizer.chat_template:
        raise RequestError("this target has no chat template; give the prompt as a string")
    return template_tokens(
        tokenizer, cast("list[Mapping[str, Any]]", messages), add_generation_prompt=True
    )


def _params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None,
    sampling: Mapping[str, Any],
    count: int,
) -> list[SamplingParams]:
    """Return the sampling parameters of each of *count* prompts.

    Args:
        params: one for all prompts, or one for each, or None.
        sampling: fields of `SamplingParams`, instead of *params*.
        count: how many prompts there are.

    Raises:
        RequestError: there are not as many parameters as prompts, or a field is not valid.
    """
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
