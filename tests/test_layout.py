"""The house: what lies in the package's root, and through which doors packages reach each other."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "eagle"
EXAMPLES = ROOT / "docs" / "examples"  # of strategies, and of the server in Ray Serve
ROOMS = sorted(
    {".".join(path.parent.relative_to(ROOT).parts) for path in CORE.rglob("__init__.py")}
    - {"eagle", "eagle.train"}
)
# The rooms of the command line share the modules beside them; nobody else imports any of it.
FACES = [room for room in ROOMS if room != "eagle.cli"]


def imports(path: Path) -> list[ast.ImportFrom]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]


def room_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(ROOT).parts)


def test_the_root_holds_errors_and_packages_alone():
    files = {path.name for path in CORE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "errors.py", "py.typed"}


def test_every_package_is_on_a_floor():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = [
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["name"] == "the core's layers"
    ]
    floors = {name.strip() for layer in layers for name in layer.split("|")}
    packages = {f"eagle.{path.parent.name}" for path in CORE.glob("*/__init__.py")}
    assert floors == {*packages, "eagle.errors"}


def test_tests_mirror_the_packages():
    packages = {path.parent.name for path in CORE.glob("*/__init__.py")}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    # What ships beside the core, and what is held of several packages at once.
    beside = {"docs", "packaging", "plugins", "scripts", "strategies"}
    assert folders == packages | beside | {"contracts", "exact", "gpu"}


@pytest.mark.parametrize("name", ["eagle", "eagle.train", *ROOMS])
def test_every_package_says_what_it_knows(name):
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", ["eagle", "eagle.train", *ROOMS])
def test_a_face_exports_in_order_what_it_names(name):
    face = importlib.import_module(name)
    assert face.__doc__
    assert len(set(face.__all__)) == len(face.__all__) > 0
    # Constants, classes, the rest, as ruff has it.
    assert face.__all__ == sorted(
        face.__all__, key=lambda word: (not word.isupper(), not word[0].isupper(), word)
    )
    exec(f"from {name} import *", {})  # whatever is named is there, rooms included


def test_a_house_of_rooms_names_them_all():
    below = {room.removeprefix("eagle.train.") for room in ROOMS if room.startswith("eagle.train.")}
    assert set(importlib.import_module("eagle.train").__all__) == below


def test_nobody_imports_the_command_line():
    for path in [*CORE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        if not room_of(path).startswith("eagle.cli"):
            used = {node.module for node in imports(path)}
            assert not any(name.split(".")[:2] == ["eagle", "cli"] for name in used), path


@pytest.mark.parametrize(
    "path",
    [*CORE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_packages_use_each_other_through_their_faces(path):
    for node in imports(path):
        room, _, leaf = node.module.rpartition(".")
        # Kernels are imported where they are launched, since not every machine has Triton.
        if room in FACES and room != room_of(path) and not leaf.endswith("triton"):
            assert node.module in FACES, f"line {node.lineno} reaches into {node.module}"


@pytest.mark.parametrize(
    "path",
    [*CORE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *EXAMPLES.rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_what_is_taken_through_a_face_is_named_there(path):
    for node in imports(path):
        if node.module in {"eagle", *FACES} and node.module != room_of(path):
            face = importlib.import_module(node.module)
            given = {*face.__all__, *(name for name in vars(face) if name.startswith("__"))}
            for alias in node.names:
                assert alias.name in given or f"{node.module}.{alias.name}" in FACES, (
                    f"line {node.lineno} takes {alias.name}, which {node.module} does not name"
                )


@pytest.mark.parametrize(
    "path",
    [*CORE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *EXAMPLES.rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_inner_modules_are_imported_by_no_other_form(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            f"line {node.lineno}: relative"
        )
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        ours = {name for name in names if name.split(".")[0] == "eagle"}
        assert ours <= {"eagle", *ROOMS}, f"line {node.lineno} reaches past a face"


@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / "plugins").rglob("*.py"),
        *(path for path in EXAMPLES.rglob("*.py") if path.parent != EXAMPLES / "replicas"),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_strategies_import_the_contract_and_nothing_behind_it(path):
    allowed = {"eagle.plugin", "eagle.plugin.triton"}
    if path.stem.startswith("test_"):
        allowed |= {"eagle", "eagle.testing"}
    used = {node.module for node in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
    assert {name for name in used if name.split(".")[0] == "eagle"} <= allowed
