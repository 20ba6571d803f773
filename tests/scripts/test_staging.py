"""A staged checkout is found as an installed one is, plug-ins and shipped specs included."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from check_gpu.staging import stage

ROOT = Path(__file__).parents[2]


def test_a_staged_checkout_declares_its_plugins(tmp_path):
    folder = stage(ROOT, tmp_path / "here")
    (found,) = distributions(path=[str(folder)])
    assert found.metadata["Name"] == "eagle-decoding"
    plugins = found.entry_points.select(group="eagle.plugins")
    assert {plugin.name for plugin in plugins} == {"reference", "strategies"}
    assert all((folder / plugin.value / "__init__.py").is_file() for plugin in plugins)
    assert (folder / "eagle" / "specs" / "eagle.yaml").is_file()
    assert not list(folder.rglob("__pycache__"))


def test_staging_again_leaves_nothing_of_before(tmp_path):
    (stage(ROOT, tmp_path / "here") / "eagle" / "stale.py").touch()
    assert not (stage(ROOT, tmp_path / "here") / "eagle" / "stale.py").exists()


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkout of this project"):
        stage(tmp_path, tmp_path / "here")
