"""The pages that describe hooks and keys name every one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle.hookspecs import HOOKS
from eagle.schema import DecoderSpec
from eagle.spec import shipped_specs

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("hook", list(HOOKS.values()))
def test_every_hook_is_documented_and_shown_in_code(hook):
    assert f"`{hook}`" in (DOCS / "plugins.md").read_text()
    assert f"def {hook}(" in (DOCS / "examples" / "five_roles" / "__init__.py").read_text()


def keys(data: dict, path: str = "") -> list[tuple[str, object]]:
    found = []
    for key, value in data.items():
        found += keys(value, f"{path}{key}.") if isinstance(value, dict) else [(path + key, value)]
    return found


@pytest.mark.parametrize(("key", "default"), keys(DecoderSpec().model_dump()))
def test_every_key_of_a_spec_is_documented_with_its_default(key, default):
    (row,) = [
        line
        for line in (DOCS / "spec.md").read_text().splitlines()
        if line.startswith(f"| `{key}`")
    ]
    if default:
        assert f"`{default}`" in row.split("|")[2] or key == "name"


def test_the_reference_shows_how_a_shipped_spec_is_taken_as_a_start():
    text = (DOCS / "spec.md").read_text()
    shown = text.split("eagle spec show ")[1].split()[0]
    assert shown in shipped_specs()
