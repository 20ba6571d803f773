"""From what a caller gives to requests: prompts, parameters and processors, checked and encoded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from pydantic import ValidationError

from eagle.cycle import Bound, Processors, for_request, processors_of_each
from eagle.decoding.generation import Defaults
from eagle.decoding.penalties import penalties
from eagle.decoding.requests import Request
from eagle.decoding.text import half_surrogate
from eagle.errors import RequestError, brief, nearest
from eagle.plugin import SamplingParams, derived_seed, explain
from eagle.target import Target, template_tokens

__all__ = ["Prompt", "encode", "intake"]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A user's message, token ids (a tensor or array of them, too), or a conversation of
``{"role", "content"}`` messages."""

_KINDS = "a prompt is a string, a list of token ids, or a list of {'role', 'content'} messages"
_OURS = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "tokenize", "tokenizer_kwargs", "truncation",
})  # fmt: skip
"""Arguments of `apply_chat_template` that say how it is called, not what the template reads."""


def intake(
    prompts: Prompt | Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
    processors: Processors | Sequence[Processors | None] | None,
    sampling: Mapping[str, Any],
    *,
    raw: bool,
    template: Mapping[str, Any] | None,
    target: Target,
    defaults: Defaults,
    capacity: int,
) -> tuple[bool, list[Request]]:
    """Make a request of every prompt; see `Decoder.generate` for what may be given.

    Args:
        prompts: one or several.
        params: for all, or for each.
        processors: for all, or for each.
        sampling: fields of `SamplingParams`, instead of *params*.
        raw: continue strings as they are.
        template: what the chat template is given beside the messages.
        target: what answers them.
        defaults: what the target's generation config does to every text.
        capacity: tokens that a slot holds at most, prompt and answer.

    Returns:
        Whether there was one prompt rather than a list, and the requests.

    Raises:
        RequestError: a prompt or a parameter is not valid.
    """
    if not isinstance(raw, bool):
        raise RequestError(f"raw is True or False, not {brief(raw)}")
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
        _request(i, prompt, p, o, raw, template, target, defaults, capacity)
        for i, (prompt, p, o) in enumerate(zip(many, each, own, strict=True))
    ]


def _request(
    index: int,
    prompt: Prompt,
    params: SamplingParams,
    processors: Processors,
    raw: bool,
    template: Mapping[str, Any] | None,
    target: Target,
    defaults: Defaults,
    capacity: int,
) -> Request:
    ids = encode(prompt, target.tokenizer, raw=raw, embeddings=target.embeddings, template=template)
    room = capacity - len(ids)
    if room < 1:
        raise RequestError(
            f"prompt {index + 1} has {len(ids)} tokens, but this decoder holds {capacity} "
            "with the answer (runtime.max_length, bounded by the target); shorten the prompt"
        )
    if params.stop and target.tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this target has none")
    limit, ends = min(params.max_new_tokens, room), target.eos_tokens
    own = for_request(processors, ids, ends)
    applied = defaults.processors(ids, limit, () if params.ignore_eos else ends, own)
    added = penalties(params, ids, target.info.vocab_size)
    bound = tuple(map(Bound, (*applied, *added)))
    return Request(
        index, ids, params, limit, ends, target.tokenizer, bound, given=tuple(processors)
    )


def encode(
    prompt: Prompt,
    tokenizer: Any,
    *,
    raw: bool,
    embeddings: int,
    template: Mapping[str, Any] | None = None,
) -> list[int]:
    """Turn a prompt into token ids.

    Args:
        prompt: see `Prompt`.
        tokenizer: the target's, or None.
        raw: continue a string as it is, instead of answering it as a user's message.
        embeddings: rows of the target's input embedding; ids must be below it.
        template: what the chat template is given beside the messages.

    Raises:
        RequestError: the prompt is empty, or not of a kind that can be encoded.
    """
    ids = _ids(_listed(prompt), tokenizer, raw=raw, template=_checked_template(template))
    if not ids:
        raise RequestError("the prompt is empty; give at least one word, or token ids")
    if min(ids) < 0 or max(ids) >= embeddings:
        bad = next(token for token in ids if not 0 <= token < embeddings)
        raise RequestError(
            f"the prompt holds token id {bad}; this target's ids are 0 to {embeddings - 1}"
        )
    return ids


def _listed(prompts: Any) -> Any:
    """Return a prompt or several of them, of a tensor or an array as lists.

    Raises:
        RequestError: they are something else.
    """
    if isinstance(prompts, (bytes, bytearray, memoryview)):
        raise RequestError(f"{_KINDS}, not {type(prompts).__name__}; decode it first")
    if not isinstance(prompts, str) and hasattr(prompts, "tolist"):
        try:
            prompts = prompts.tolist()
        except Exception as error:  # a meta tensor, a lazy one, or one of another library
            raise RequestError(
                f"the prompt is a {type(prompts).__name__} without values that can be read: {error}"
            ) from error
    if not isinstance(prompts, (str, Sequence)):
        raise RequestError(f"{_KINDS}, not {type(prompts).__name__}")
    return prompts


def _check_text(text: Any) -> None:
    if isinstance(text, str) and (place := half_surrogate(text)) is not None:
        raise RequestError(
            f"the prompt is not text that UTF-8 can hold: character {place} is "
            f"{text[place]!a}, half of a surrogate pair or a byte that was not UTF-8"
        )


def _ids(prompt: Prompt, tokenizer: Any, *, raw: bool, template: Mapping[str, Any]) -> list[int]:
    # What a number is takes a while to ask of each; of plain ones, which most are, it need not be.
    plain = not isinstance(prompt, str) and set(map(type, prompt)) <= {int}
    if plain or (
        not isinstance(prompt, str) and all(isinstance(token, Integral) for token in prompt)
    ):
        if template:
            raise RequestError(
                f"the chat template's {_names(template)} cannot be used with a prompt of token "
                "ids, which no template is applied to; give messages"
            )
        if plain:
            return list(cast("Sequence[int]", prompt))
        if any(isinstance(token, bool) for token in prompt):
            raise RequestError("the prompt holds True or False, which are no token ids")
        return [int(token) for token in cast("Sequence[int]", prompt)]
    if isinstance(prompt, str) and not prompt.strip() and not raw:
        return []
    if tokenizer is None:
        raise RequestError("this target has no tokenizer; give the prompt as token ids")
    if isinstance(prompt, str) and (raw or not tokenizer.chat_template):
        if template:
            why = "it is given raw" if raw else "this target has no chat template"
            raise RequestError(
                f"the chat template's {_names(template)} cannot be used with this prompt: {why}"
            )
        _check_text(prompt)
        try:
            return list(tokenizer(prompt)["input_ids"])
        except Exception as error:  # tokenizers are programs of many authors, as templates are
            raise RequestError(f"the tokenizer refuses this prompt: {error}") from error
    if not isinstance(prompt, str) and not all(isinstance(m, Mapping) for m in prompt):
        raise RequestError(_KINDS)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    for message in cast("list[Mapping[str, Any]]", messages):
        _check_text(message.get("content"))
    if not tokenizer.chat_template:
        raise RequestError("this target has no chat template; give the prompt as a string")
    _check_reads(template, tokenizer)
    return template_tokens(
        tokenizer,
        cast("list[Mapping[str, Any]]", messages),
        add_generation_prompt=True,
        **template,
    )


def _checked_template(template: Any) -> Mapping[str, Any]:
    """Return what a chat template is given, checked for what this library says itself.

    Raises:
        RequestError: it is no mapping of names, or has a name that is not the template's.
    """
    if template is None:
        return {}
    if not isinstance(template, Mapping) or not all(isinstance(name, str) for name in template):
        raise RequestError(
            "chat_template_kwargs is a mapping of names that the chat template reads, as in "
            f"{{'enable_thinking': False}}, not {type(template).__name__}"
        )
    if taken := sorted(_OURS & set(template)):
        raise RequestError(
            f"chat_template_kwargs: {taken[0]!r} says how the template is applied, which is "
            "settled; only what the template itself reads can be given"
        )
    return template


def _check_reads(template: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse names that the chat template does not mention: they would be dropped silently."""
    if not template:
        return
    try:
        text = str(tokenizer.get_chat_template(tools=template.get("tools")))
    except Exception as error:  # one of several by name, and none for this use
        raise RequestError(f"there is no chat template for {_names(template)}: {error}") from error
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    for name in template:
        if name not in words:
            raise RequestError(
                f"chat_template_kwargs: this target's chat template reads no {name!r}, so it would "
                f"have no effect.{nearest(name, words)}"
            )


def _names(template: Mapping[str, Any]) -> str:
    return ", ".join(template)


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
        raise RequestError(f"give either params or {', '.join(sampling)}, not both")
    if params is None:
        try:
            params = SamplingParams(**sampling)
        except ValidationError as error:
            problems = explain(error, SamplingParams, sampling)
            raise RequestError(
                "; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in problems.items())
            ) from error
    if isinstance(params, SamplingParams):
        return [_seeded(params, index) for index in range(count)]
    if not isinstance(params, Sequence) or isinstance(params, (str, bytes)):
        raise RequestError(
            f"params are a SamplingParams or a list of them, not {type(params).__name__}; the "
            "fields themselves are given by name, as in generate(prompt, temperature=1)"
        )
    if len(params) != count:
        raise RequestError(f"{len(params)} sampling parameters were given for {count} prompts")
    for index, own in enumerate(params):
        if not isinstance(own, SamplingParams):
            raise RequestError(
                f"the parameters of prompt {index + 1} are {type(own).__name__}, no SamplingParams"
            )
    return list(params)


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    if params.seed is None or index == 0:
        return params
    return params.model_copy(update={"seed": derived_seed(params.seed, index)})
