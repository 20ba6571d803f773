"""The grammars that can be asked for, by how they are written; what follows them is `Grammar`'s.

JSON is spaced as Python's `json.dumps` does, one space behind commas and colons and none
elsewhere: where space may go on for ever, a small model's answer may, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eagle.errors import RequestError, brief
from eagle.structured.matching import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

__all__ = ["grammar", "json_object", "json_schema", "regex"]

_SPACING: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


def json_object(tokenizer: Any) -> Grammar:
    """Return a processor of answers that are a JSON object, whatever is in it.

    Args:
        tokenizer: the target's, a fast one of transformers.

    Raises:
        RequestError: llguidance is not installed, or the tokenizer is none that it can read.
    """
    return json_schema(tokenizer, {"type": "object"})


def json_schema(tokenizer: Any, schema: Mapping[str, Any] | bool | str) -> Grammar:
    """Return a processor of answers that are JSON and valid by a schema.

    Args:
        tokenizer: the target's, a fast one of transformers.
        schema: JSON Schema, as an object or as text. One with keywords that llguidance does not
            hold answers to is refused.

    Raises:
        RequestError: see `json_object`; or the schema is none, or cannot be followed.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise RequestError(f"the JSON schema is no JSON: {error}") from error
    if not isinstance(schema, (Mapping, bool)):
        raise RequestError(f"a JSON schema is an object, true or false, not {brief(schema)}")
    try:
        text = json.dumps(schema if isinstance(schema, bool) else dict(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the JSON schema cannot be written as JSON: {error}") from error
    make = partial(_matcher().grammar_from_json_schema, overrides=_SPACING)
    return _made(tokenizer, make, text, "the JSON schema")


def regex(tokenizer: Any, pattern: str) -> Grammar:
    """Return a processor of answers that a regular expression matches as a whole.

    Args:
        tokenizer: the target's, a fast one of transformers.
        pattern: in the syntax of Rust's `regex`, which has no look-around and no back-references.

    Raises:
        RequestError: see `json_object`; or the pattern is none.
    """
    make = _matcher().grammar_from_regex
    return _made(tokenizer, make, _text(pattern, "a regular expression"), "the regular expression")


def grammar(tokenizer: Any, text: str) -> Grammar:
    """Return a processor of answers that a context-free grammar derives.

    Args:
        tokenizer: the target's, a fast one of transformers.
        text: in Lark's syntax, as llguidance reads it; its rule ``start`` is the answer.

    Raises:
        RequestError: see `json_object`; or the grammar is none.
    """
    make = _matcher().grammar_from_lark
    return _made(tokenizer, make, _text(text, "a grammar"), "the grammar")


def _made(tokenizer: Any, make: Callable[[str], str], text: str, name: str) -> Grammar:
    """Return a grammar, of the text that llguidance makes one of."""
    try:
        written = make(text)
    except ValueError as error:  # half of a surrogate pair, in the text itself or in JSON's escapes
        raise RequestError(f"{name} cannot be read: {error}") from error
    return Grammar(tokenizer, written, name)


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str) or not given:
        raise RequestError(f"{what} is a text, not {brief(given)}")
    return given


def _matcher() -> type[LLMatcher]:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise RequestError(
            "grammars need llguidance: pip install 'eagle-decoding[structured]'"
        ) from error
    return LLMatcher
