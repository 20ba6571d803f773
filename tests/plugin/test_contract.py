"""What is required of a component, by role: a longer list breaks plug-ins, see docs/contract.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eagle.plugin
from eagle.plugin import HOOKS, Role, blocks, capabilities

REQUIRED = {
    "FeatureExtractor": {"capturable", "extract", "feature_size", "layers"},
    "DraftHead": {
        *("capturable", "feature_size", "state_size", "load", "allocate"),
        *("absorb", "extend", "logits"),
    },
    "TreeBuilder": {"capturable", "shape", "laws", "uniforms", "build"},
    "AttentionBackend": {"capturable", "unsupported", "plan", "attend"},
    "AcceptanceRule": {"capturable", "lossless", "laws", "uniforms", "accept"},
    "TrainingLoss": {"compares_features", "__call__"},
}


def members(protocol):
    own = {name for name in dir(protocol) if not name.startswith("_")}
    return own | ({"__call__"} if "__call__" in vars(protocol) else set())


@pytest.mark.parametrize("name", REQUIRED)
def test_a_role_requires_no_more_than_it_did(name):
    protocol = getattr(eagle.plugin, name)
    assert members(protocol) | set(protocol.__annotations__) == REQUIRED[name]


def test_every_role_has_its_list_and_its_hook():
    assert len(REQUIRED) == len(Role) == len(HOOKS)
    assert set(HOOKS.values()) == {
        *("eagle_feature_extractors", "eagle_draft_heads", "eagle_tree_builders"),
        *("eagle_attention_backends", "eagle_acceptance_rules", "eagle_training_losses"),
    }


def test_capabilities_and_building_blocks_are_part_of_the_one_import():
    assert {*capabilities.__all__, *blocks.__all__} <= set(eagle.plugin.__all__)


@pytest.mark.parametrize(
    "path", [*Path(eagle.plugin.__file__).parent.rglob("*.py")], ids=lambda path: path.stem
)
def test_the_contract_speaks_of_itself_by_the_names_that_authors_import(path):
    for package, name in re.findall(r"`eagle\.([a-z]\w*)\.(\w+)", path.read_text()):
        assert package == "plugin" or name not in eagle.plugin.__all__, f"eagle.{package}.{name}"
