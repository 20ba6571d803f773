"""The form that an answer must have, from a request's fields to a logits processor."""

from __future__ import annotations

import json
import re
from typing import Any

from eagle.cycle import Processor
from eagle.errors import RequestError
from eagle.serve.problems import Problem
from eagle.serve.schemas import ChatRequest, SamplingRequest
from eagle.structured import grammar, json_object, json_schema, regex

__all__ = ["structure_of"]


_LONGEST = 65_536  # characters of a schema or a grammar
_MULTIPLES = re.compile(r'multipleOf\\?"\s*:\s*[0-9.eE+-]{5,}')  # in a grammar's text, too


def structure_of(body: SamplingRequest, tokenizer: Any) -> list[Processor]:
    """Return what holds every answer to the form that a request asks for, if it asks for one.

    Raises:
        Problem: the form is none that can be followed.
    """
    param = "structured_outputs"
    try:
        if isinstance(body, ChatRequest) and body.response_format is not None:
            param = "response_format"
            asked = body.response_format
            if asked.json_schema is not None:
                _bounded(asked.json_schema.schema_)
                return [json_schema(tokenizer, asked.json_schema.schema_)]
            return [json_object(tokenizer)] if asked.type == "json_object" else []
        form = body.structured_outputs
        if form is None:
            return []
        _bounded(form.model_dump(exclude_none=True))
        if form.json_ is not None:
            return [json_schema(tokenizer, form.json_)]
        if form.regex is not None:
            return [regex(tokenizer, form.regex)]
        if form.grammar is not None:
            return [grammar(tokenizer, form.grammar)]
        if form.choice is not None:
            choices = " | ".join(map(json.dumps, form.choice))  # as Lark writes strings, too
            return [grammar(tokenizer, f"start: {choices}")]
        return [json_object(tokenizer)]
    except RequestError as error:
        raise Problem(400, str(error), param=param) from error


def _bounded(form: Any) -> None:
    """Refuse a form that would take seconds to compile, in which no other request is taken.

    Raises:
        RequestError: it is too long, or asks for multiples of a number of many digits.
    """
    text = json.dumps(form, default=str)
    if len(text) > _LONGEST:
        raise RequestError(f"it has {len(text):,} characters; {_LONGEST:,} are taken at most")
    if _MULTIPLES.search(text):
        raise RequestError("multipleOf should be a number of four digits at most")
