"""Bodies of requests after a schema: mostly right, some wrong in one place, some any JSON."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["bodies"]

TEXT = st.text(max_size=12)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def of_schema(schema: dict[str, Any], known: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a JSON Schema, as pydantic writes them, mostly allows."""
    if "$ref" in schema:
        return of_schema(known[schema["$ref"].rsplit("/")[-1]], known)
    if "anyOf" in schema:
        return st.one_of([of_schema(one, known) for one in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, known)
    if kind == "array":
        size = {"min_size": schema.get("minItems", 0), "max_size": schema.get("minItems", 0) + 2}
        return st.lists(of_schema(schema.get("items", {}), known), **size)
    if kind == "integer":
        low = schema.get("minimum", schema.get("exclusiveMinimum", -5))
        high = schema.get("maximum", schema.get("exclusiveMaximum", 5))
        return st.integers(low - 1, high + 1) | st.integers(low, min(high, low + 40))
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        return st.floats(low, schema.get("maximum", 10))
    return {
        "string": TEXT,
        "boolean": st.booleans(),
        "null": st.none(),
    }.get(kind, ANY)


def _object(schema: dict[str, Any], known: dict[str, Any]) -> st.SearchStrategy[Any]:
    properties = schema.get("properties", {})
    if not properties:
        inner = schema.get("additionalProperties")
        values = of_schema(inner, known) if isinstance(inner, dict) else ANY
        return st.dictionaries(TEXT | st.sampled_from(["3", "63", "64"]), values, max_size=3)
    needed = schema.get("required", [])
    made = {name: of_schema(one, known) for name, one in properties.items()}
    return st.fixed_dictionaries(
        {name: made[name] for name in needed},
        optional={name: one for name, one in made.items() if name not in needed},
    )


@st.composite
def bodies(draw: st.DrawFn, schema: dict[str, Any], known: dict[str, Any]) -> Any:
    """Draw a body: after the schema with few fields, perhaps with one spoilt, or any JSON."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(ANY)
    body = draw(of_schema(schema, known))
    kept = draw(st.sets(st.sampled_from(sorted(schema["properties"])), max_size=5))
    body = {k: v for k, v in body.items() if k in kept or k in schema["required"]}
    if kind < 4:
        body[draw(st.sampled_from(sorted(schema["properties"])) | TEXT)] = draw(ANY)
    body["max_tokens"] = draw(st.integers(0, 3) | st.none())
    return body
