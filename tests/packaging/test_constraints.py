from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(pin.name): pin
    for pin in map(
        Requirement,
        (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"),
    )
}
UNPINNED = {
    "pip": "whichever the environment came with",
    "triton": "torch's CUDA builds ask for exactly one version",
    "eagle-decoding": "this project",
}
DIRECT = [
    requirement
    for listed in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, listed)
    if canonicalize_name(requirement.name) not in UNPINNED
]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    (pin,) = PINS[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)


@pytest.mark.parametrize("pin", PINS.values(), ids=lambda pin: pin.name)
def test_pins_fit_every_machine(pin):
    (specifier,) = pin.specifier
    assert "+" not in specifier.version, "a local build such as +cpu is not on every index"
    assert not pin.name.lower().startswith("nvidia"), "only CUDA builds of torch need these"
    assert canonicalize_name(pin.name) not in UNPINNED
