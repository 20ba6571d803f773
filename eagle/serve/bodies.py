"""A request's body as a model of it, or what is wrong with it, by the name of the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from eagle.plugin import explain
from eagle.serve.problems import Problem
from eagle.serve.schemas import Misfit

__all__ = ["checked"]

_BodyT = TypeVar("_BodyT", bound=BaseModel)


async def checked(model: type[_BodyT], request: Request) -> _BodyT:
    """Return a request's body as a model of it.

    Raises:
        Problem: it is not JSON, or a field is wrong.
    """
    try:
        data = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is not valid JSON", code="invalid_json") from error
    if not isinstance(data, dict):
        raise Problem(400, "the body should be a JSON object")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        path, text = next(iter(explain(error, model, data).items()))
        found = error.errors(include_url=False)
        name = _named(path)
        # pydantic says of fields that do not go together where they are, and not which is wrong.
        told = [
            item["ctx"]["error"]
            for item in found
            if item["type"] == "value_error" and item["loc"] == path
        ]
        own = [one.name for one in told if isinstance(one, Misfit)]
        unknown = any(item["type"] == "extra_forbidden" for item in found)
        raise Problem(
            400,
            f"{name}: {text}" if name else text,
            param=_named([*path, *own[:1]]) or None,
            code="unknown_field" if unknown else None,
        ) from error


def _named(path: Sequence[str | int]) -> str:
    """Return a path to a field as messages have it."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}"[:61] for p in path)[1:]
