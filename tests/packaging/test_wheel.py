"""The wheel, and a third party's plug-in beside it, in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "eagle-adaptive-tree"

pytestmark = pytest.mark.packaging


def run(*command: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    words = list(map(str, command))
    ran = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == status, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran


def build(source: Path, folder: Path) -> Path:
    """Return the wheel of a copy of a project: building leaves its traces beside the sources."""
    copy = folder / "source" / source.name
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "*.egg-info", "runs", "_build", "__pycache__", ".*_cache"
    )
    shutil.copytree(source, copy, ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The project's wheel and the example's."""
    return tuple(build(source, tmp_path_factory.mktemp("wheels")) for source in (ROOT, EXAMPLE))


@pytest.fixture(scope="module")
def clean(tmp_path_factory, wheels):
    """A folder with an environment `env`: the two wheels, and this environment's dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", where, cwd=folder).stdout.strip())
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, *wheels, cwd=folder)
    # Dependencies are borrowed by links: a .pth file would run this environment's own, and with
    # them the editable installation that the wheel is to be tested without.
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if "eagle" not in entry.name and entry.suffix != ".pth":
            link = packages / entry.name
            if not link.exists():
                link.symlink_to(entry)
    return folder


def test_the_wheel_has_the_packages_the_specs_and_the_licence(wheels):
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    wanted = {"eagle/py.typed", "eagle/specs/eagle.yaml", "eagle/cli/__init__.py"}
    wanted |= {"eagle/specs/__init__.py", "eagle_plugins/__init__.py", "eagle_plugins/py.typed"}
    wanted |= {"eagle/serve/page/index.html", "eagle/serve/page/app.js"}
    assert wanted <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # Every module is listed by package in pyproject.toml, where one is easily forgotten.
    plugins = ((f"plugins/{name}", name) for name in ("eagle_plugins", "eagle_strategies"))
    for source, package in (("eagle", "eagle"), *plugins):
        for module in (ROOT / source).rglob("*.py"):
            assert f"{package}/{module.relative_to(ROOT / source).as_posix()}" in names
    assert not [
        name for name in names if name.startswith(("tests/", "docs/", "specs/", "plugins/"))
    ]


def test_the_head_is_in_the_wheel(wheels):
    names = zipfile.ZipFile(wheels[0]).namelist()
    weights = [name for name in names if name.startswith("eagle_plugins/heads/weights/")]
    for file in ("model.safetensors", "config.json", "acceptance.json"):
        assert any(name.endswith(f"/{file}") for name in weights)


def test_a_clean_environment_uses_the_wheel(clean):
    code = "import eagle, eagle.specs, eagle_plugins as p; print(eagle.__file__, p.__file__)"
    ran = run(clean / "env/bin/python", "-c", code, cwd=clean)
    assert str(ROOT) not in ran.stdout
    assert run(clean / "env/bin/eagle", "--version", cwd=clean).stdout.startswith("eagle-decoding")


def test_the_third_partys_plugin_is_listed_beside_ours(clean):
    listed = json.loads(run(clean / "env/bin/eagle", "plugins", "--json", cwd=clean).stdout)
    assert listed["broken"] == []
    found = {(entry["role"], entry["name"]): entry for entry in listed["strategies"]}
    assert found["tree", "static"]["distribution"] == "eagle-decoding"
    assert found["tree", "adaptive"]["distribution"] == "eagle-adaptive-tree"
    assert found["tree", "adaptive"]["plugin"] == "adaptive-tree"


def test_the_third_partys_plugin_is_used_from_yaml(clean):
    eagle = clean / "env/bin/eagle"
    ran = run(eagle, "spec", "check", EXAMPLE / "adaptive.yaml", cwd=clean)
    assert "tree adaptive" in ran.stdout
    assert "lossless, tree nodes: 25, drafted levels: 5" in ran.stdout
    override = ("--set", "tree.nodes=999")
    ran = run(eagle, "spec", "check", EXAMPLE / "adaptive.yaml", *override, cwd=clean, status=2)
    assert "tree: nodes is 999, but depth and width make only 68" in ran.stderr
