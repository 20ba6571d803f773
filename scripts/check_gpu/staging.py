"""A checkout: its commit, and laid out as if installed, where nothing can be installed."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

__all__ = ["commit_of", "stage"]

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def stage(checkout: Path, folder: Path) -> Path:
    """Copy a checkout's packages, tests and metadata into a folder that PYTHONPATH can name.

    Packages go where `package-dir` says, and a `dist-info` beside them declares the plug-ins. It is
    a copy, so that nobody disturbs a run by going on to edit.

    Raises:
        ValueError: it is no checkout of this project.
    """
    try:
        data = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
        places = data["tool"]["setuptools"]["package-dir"]
        project = data["project"]
        groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{checkout} is no checkout of this project: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    for package in sorted(places):  # a package before those inside it
        target = folder.joinpath(*package.split("."))
        shutil.copytree(checkout / places[package], target, ignore=_IGNORED, dirs_exist_ok=True)
    if (checkout / "tests").is_dir():
        shutil.copytree(checkout / "tests", folder / "tests", ignore=_IGNORED)
    shutil.copy(checkout / "pyproject.toml", folder)
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def commit_of(folder: Path) -> str:
    """Return the commit of a checkout, marked where it has changes; empty where git knows none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
