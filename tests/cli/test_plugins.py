from __future__ import annotations

import json

import pytest

from tests.fakes import TREE_PLUGIN, install

KEYS = {"role", "name", "plugin", "distribution", "version", "description", "laws", "lossless"}


def test_json_has_every_strategy_and_nothing_else_on_stdout(eagle):
    ran = eagle("plugins", "--json")
    assert (ran.status, ran.err) == (0, "")
    listed = json.loads(ran.out)
    assert set(listed) == {"strategies", "broken"}
    assert all(set(entry) == KEYS for entry in listed["strategies"])
    by_name = {(entry["role"], entry["name"]): entry for entry in listed["strategies"]}
    static = by_name["tree", "static"]
    assert static["plugin"] == "reference"
    assert static["distribution"] == "eagle-decoding"
    assert "top-k" in static["laws"]
    assert static["lossless"] is None
    assert by_name["acceptance", "speculative"]["lossless"] is True


def test_what_a_plugin_prints_is_no_result(eagle, site):
    install(
        site, "loud-trees", "loud_trees", "print('loud')\n" + TREE_PLUGIN.format(name="loud"), "0.1"
    )
    ran = eagle("plugins", "--json")
    assert "loud_trees" in {entry["plugin"] for entry in json.loads(ran.out)["strategies"]}
    assert "loud" in ran.err


def test_one_role_only(eagle):
    listed = json.loads(eagle("plugins", "--role", "tree", "--json").out)
    assert {entry["role"] for entry in listed["strategies"]} == {"tree"}
    ran = eagle("plugins", "--role", "tree")
    assert "static" in ran.out
    assert "speculative" not in ran.out


def test_the_listing_for_people_has_it_all(eagle):
    ran = eagle("plugins")
    assert ran.status == 0
    text = " ".join(ran.out.split())
    for word in ("tree builders", "static", "siblings: top-k", "lossless", "eagle-decoding"):
        assert word in text


def test_an_unknown_role_suggests_the_nearest(eagle):
    ran = eagle("plugins", "--role", "tre")
    assert (ran.status, ran.out) == (2, "")
    assert "'tre' is no role. Did you mean 'tree'? Roles: features, head, tree," in ran.err


@pytest.fixture
def trouble(site):
    """A working plug-in, two that collide, one that does not import, one with a misspelt hook."""
    install(site, "good-trees", "good_trees", TREE_PLUGIN.format(name="good"), "1.5")
    for name in ("one", "two"):
        install(site, f"{name}-trees", f"{name}_trees", TREE_PLUGIN.format(name="same"))
    install(site, "sad-trees", "sad_trees", "raise RuntimeError('sad [really]')", "0.1")
    code = TREE_PLUGIN.format(name="x").replace("eagle_tree_builders", "eagle_tree_builder")
    install(site, "typo-trees", "typo_trees", code)


@pytest.mark.usefixtures("trouble")
def test_broken_plugins_are_listed_with_the_reason(eagle):
    listed = json.loads(eagle("plugins", "--json").out)
    broken = {entry["name"]: entry for entry in listed["broken"]}
    assert broken["sad_trees"]["distribution"] == "sad-trees 0.1"
    assert broken["sad_trees"]["reason"].endswith("RuntimeError: sad [really]")
    assert "Did you mean 'eagle_tree_builders'?" in broken["typo_trees"]["reason"]
    assert broken["tree/same"]["distribution"] == "one-trees 1.0 and two-trees 1.0"
    names = [entry["name"] for entry in listed["strategies"]]
    assert "good" in names
    assert "same" not in names
    ran = eagle("plugins")
    assert ran.status == 0
    assert "broken: sad_trees (sad-trees 0.1): importing sad_trees failed: RuntimeError: sad [" in (
        ran.out
    )


@pytest.mark.usefixtures("trouble")
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("sad", "no tree builder is named 'sad'. Known: best-first, chain, dynamic, good,"),
        ("sad", "It may belong to a plug-in that is broken: sad_trees (sad-trees 0.1): importing"),
        ("same", "the tree builder 'same' is claimed by plug-in 'one_trees' of one-trees 1.0"),
        ("same", "and by plug-in 'two_trees' of two-trees 1.0"),
        ("god", "Did you mean 'good'?"),
        ("good", "tree builder 'good' (good-trees 1.5): build() returned a NoneType"),
    ],
)
def test_a_spec_that_selects_a_broken_name_names_the_culprit(eagle, tree, message):
    ran = eagle("spec", "check", "chain", "--set", f"tree={tree}")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.usefixtures("trouble")
def test_a_broken_plugin_does_not_stop_a_spec_that_does_not_need_it(eagle):
    assert eagle("spec", "check", "chain").status == 0
