"""The pages that describe hooks and keys name every one of them."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import eagle
from eagle.plugin import blocks, capabilities
from eagle.plugin.hooks import ENTRY_POINT_GROUP, HOOKS
from eagle.spec import shipped_specs
from eagle.spec.schema import DecoderSpec

DOCS = Path(__file__).parents[2] / "docs"
PLUGINS = DOCS / "guides" / "plugins.md"
PAGES = sorted(
    page for page in DOCS.glob("**/*.md") if not {"_build", "examples"} & set(page.parts)
)
WITHOUT_A_REFERENCE = {"eagle.cli", "eagle.train"}


def packages() -> list[tuple[str, bool]]:
    """Return the library's packages by their whole names."""
    found = pkgutil.iter_modules(eagle.__path__, "eagle.")
    return [(module.name, module.ispkg) for module in found if module.ispkg]


def reference():
    """Return the module that writes the page of the command line."""
    spec = importlib.util.spec_from_file_location("commands", DOCS / "commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hook", list(HOOKS.values()))
def test_every_hook_is_documented_and_shown_in_code(hook):
    assert f"`{hook}`" in (PLUGINS).read_text()
    assert f"def {hook}(" in (DOCS / "examples" / "five_roles" / "__init__.py").read_text()


def named(page: Path) -> set[str]:
    """Return the dotted names of ours that a page has in code."""
    return set(re.findall(r"`(eagle\.[A-Za-z_.]+)`", page.read_text())) - {ENTRY_POINT_GROUP}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_that_a_page_gives_exists(page):
    for name in named(page):
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_ours_that_a_page_names_exists(page):
    for name in re.findall(r"`((?:eagle|plugins|specs|tests)/[\w/.-]+)`", page.read_text()):
        assert (DOCS.parent / name).exists(), name


@pytest.mark.parametrize(
    "name",
    [
        *(f"eagle.plugin.{name}" for name in capabilities.__all__),
        "eagle.plugin.Budget", "eagle.plugin.Costs", "eagle.plugin.Fit", "eagle.plugin.Option",
        "eagle.plugin.RankRates",
    ],
)  # fmt: skip
def test_every_optional_capability_is_documented(name):
    assert name in named(PLUGINS)


@pytest.mark.parametrize("name", blocks.__all__)
def test_every_building_block_is_in_the_contracts_table(name):
    assert f"eagle.plugin.{name}" in named(DOCS / "contract.md")


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


PACKAGES = [name for name, _ in packages() if name not in WITHOUT_A_REFERENCE]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_reference_has_every_package_that_is_used_from_python(name):
    page = DOCS / ("contract.md" if name == "eagle.plugin" else "api.md")
    assert f".. automodule:: {name}\n" in page.read_text()


@pytest.mark.parametrize("name", [name for name, _ in packages()])
def test_the_house_has_a_row_for_every_package(name):
    rows = (DOCS / "architecture.md").read_text().split("| floor |")[1].split("\n\n")[0]
    assert len(re.findall(rf"^\| \d+ \| `{name.replace('.', '/')}/` \|", rows, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", eagle.__all__)
def test_the_reference_has_every_name_of_the_library(name):
    assert f"eagle.{name}" in (DOCS / "api.md").read_text()


def test_the_page_of_the_command_line_has_every_option_of_every_command():
    page = reference()
    for name, command in page.leaves(page.program()):
        section = page.page().split(f"## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            names = [parameter.metavar or parameter.name]
            shown = parameter.opts if parameter.param_type_name == "option" else names
            assert any(word.replace("|", "\\|") in section for word in shown)
    assert page.PLACE in (DOCS / "cli.md").read_text()


def figures(text: str) -> set[str]:
    """Return the numbers with a point or a comma that a text has: those that were measured."""
    return set(re.findall(r"\d+(?:[.,]\d+)+", text))


def table(page: Path) -> str:
    """Return the rows of a page's table of speeds."""
    rows = page.read_text().split("times as fast |")[1].split("\n\n")[0]
    return "\n".join(row.split("`A`")[0] for row in rows.splitlines()[2:])


def test_the_figures_of_the_readme_are_those_of_the_page_of_performance():
    shown = figures(table(DOCS.parent / "README.md"))
    assert len(shown) >= 8
    assert shown <= figures(table(DOCS / "performance.md"))


def test_the_figures_of_the_summary_are_those_of_the_details():
    details = "".join(page.read_text() for page in (DOCS / "performance").glob("*.md"))
    assert figures(table(DOCS / "performance.md")) <= figures(details)


def test_the_readme_shows_one_picture_and_one_table_of_figures():
    text = (DOCS.parent / "README.md").read_text()
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^\|[-|: ]+\|$", text, re.MULTILINE)) == 1
