"""A conversation as the text and tokens of a model's chat template, which may not run without end.

A template is a program of the model's author: what it makes, and how long it takes, is bounded
before its text is tokenised. It knows transformers' tokenizers, and nothing of what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eagle.errors import RequestError, reason
from eagle.target.rehearsal import UnboundedError, rehearse
from eagle.target.tokens import is_core

__all__ = ["template_text", "template_tokens"]

_OWN_TEXT = 1 << 18  # characters that a template may add by itself; the longest known add 30,000
_SHORT = 4096  # characters, in which a tokenizer need not let other threads run: that takes longer
_OTHER = 20  # characters of a number, say
_REPEATED = 8  # times that it may say what it is given


def template_tokens(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], **given: Any
) -> list[int]:
    """Return the tokens of a conversation; see `template_text`."""
    text = template_text(tokenizer, messages, **given)
    if _is_plain(tokenizer):
        core = tokenizer.backend_tokenizer
        if len(text) < _SHORT:
            return list(core.encode(text, add_special_tokens=False).ids)
        return list(core.encode_batch_fast([text], add_special_tokens=False)[0].ids)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer's call is its Rust core's, which without the detour takes half the time.

    Its state is looked at each time: whoever has the tokenizer may let it cut or fill texts.
    """
    if not is_core(tokenizer, "__call__", "_encode_plus"):
        return False
    if hasattr(tokenizer, "_switch_to_input_mode"):
        return False
    core = tokenizer.backend_tokenizer
    whole = core.truncation is None and core.padding is None
    return whole and core.encode_special_tokens == tokenizer.split_special_tokens


def template_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **given: Any) -> str:
    """Return the text that a tokenizer's chat template makes of a conversation.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        given: further arguments of `apply_chat_template`: ``add_generation_prompt``, ``tools``, and
            whatever the template itself takes.

    Raises:
        RequestError: the template refuses the messages, makes too much text of them or text that
            UTF-8 cannot hold, or takes too long.
    """
    most = _OWN_TEXT + _REPEATED * _size([list(messages), given])
    try:
        if hasattr(tokenizer, "get_chat_template"):
            values = {"tools": None, "documents": None, "add_generation_prompt": False, **given}
            rehearse(
                tokenizer.get_chat_template(tools=values["tools"]),
                {**tokenizer.special_tokens_map, **values, "messages": list(messages)},
                most,
            )
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **given)
    except UnboundedError as error:
        raise RequestError(f"the chat template {error}, so it is not used") from error
    except Exception as error:  # whatever its author lets it raise
        raise RequestError(f"the chat template refuses these messages: {reason(error)}") from error
    if len(text) > most:  # of what only transformers' own way of running it shows
        raise RequestError(f"the chat template makes {len(text):,} characters, so it is not used")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # of a tool, a call's arguments, or whatever else it reads
        raise RequestError(
            "what the chat template makes of these messages is not text that UTF-8 can hold: it "
            f"has {text[error.start]!a}, half of a surrogate pair or a byte that was not UTF-8"
        ) from error
    return text


def _size(thing: Any) -> int:
    """Return how much text there is in what a template is given, at most."""
    if isinstance(thing, str):
        return len(thing)
    if isinstance(thing, Mapping):
        return sum(_size(key) + _size(value) for key, value in thing.items())
    if isinstance(thing, (list, tuple)):
        return sum(map(_size, thing))
    return _OTHER
