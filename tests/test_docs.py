"""The pages that describe hooks and keys name every one of them."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from eagle.plugin import capabilities
from eagle.plugin.hooks import ENTRY_POINT_GROUP, HOOKS
from eagle.spec.building import shipped_specs
from eagle.spec.schema import DecoderSpec

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("hook", list(HOOKS.values()))
def test_every_hook_is_documented_and_shown_in_code(hook):
    assert f"`{hook}`" in (DOCS / "plugins.md").read_text()
    assert f"def {hook}(" in (DOCS / "examples" / "five_roles" / "__init__.py").read_text()


def named(page: Path) -> set[str]:
    """Return the dotted names of ours that a page has in code."""
    return set(re.findall(r"`(eagle\.[A-Za-z_.]+)`", page.read_text())) - {ENTRY_POINT_GROUP}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_name_that_a_page_gives_exists(page):
    for name in named(page):
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        *(f"eagle.plugin.{name}" for name in capabilities.__all__),
        "eagle.plugin.Budget", "eagle.plugin.Costs", "eagle.plugin.Fit", "eagle.plugin.Option",
        "eagle.plugin.RankRates",
    ],
)  # fmt: skip
def test_every_optional_capability_is_documented(name):
    assert name in named(DOCS / "plugins.md")


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
