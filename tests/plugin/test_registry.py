from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from eagle.errors import PluginError, SpecError, UnknownStrategyError
from eagle.plugin.hooks import HOOKS, hookimpl
from eagle.plugin.registry import Registry, default_registry
from eagle.plugin.roles import Role, Strategy, StrategyConfig
from tests import fakes
from tests.fakes import TREE_PLUGIN, install, plugin, strategy


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of the import path in which a test installs distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and tmp_path.name in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def refusal(registry: Registry, plug: object) -> str:
    with pytest.raises(PluginError) as caught:
        registry.register(plug, "bad", "bad-trees", "2.0")
    assert str(registry.broken[-1]) in str(caught.value)
    assert "bad (bad-trees 2.0)" in str(caught.value)
    return str(caught.value)


def test_every_role_has_a_hook_and_a_title():
    from eagle.plugin.registry import ROLE_TITLES

    assert set(HOOKS) == set(ROLE_TITLES) == set(Role)


def test_lists_strategies_by_role_then_name_with_their_origin():
    registry = Registry()
    registry.register(plugin(tree=[strategy("z"), strategy("a")]), "mine", "my-trees", "1.2")
    registry.register(plugin(head=[strategy("h")]), "other", "my-heads")
    found = registry.strategies()
    assert [(entry.role, entry.name) for entry in found] == [
        (Role.HEAD, "h"),
        (Role.TREE, "a"),
        (Role.TREE, "z"),
    ]
    assert str(found[1]) == "tree builder 'a' (my-trees 1.2)"
    assert str(found[0].origin) == "plug-in 'other' of my-heads"
    assert [entry.name for entry in registry.strategies(Role.TREE)] == ["a", "z"]
    assert registry.broken == []


def test_finds_installed_plugins_by_their_entry_points(site):
    install(site, "nice-trees", "nice_trees", TREE_PLUGIN.format(name="nice"), "3.1")
    entry = Registry.discover().get(Role.TREE, "nice")
    assert (entry.origin.plugin, entry.origin.distribution, entry.origin.version) == (
        "nice_trees",
        "nice-trees",
        "3.1",
    )


def test_the_reference_strategies_come_through_entry_points_like_all_others():
    reference = default_registry().get(Role.ACCEPTANCE, "speculative")
    assert (reference.origin.plugin, reference.origin.distribution) == (
        "reference",
        "eagle-decoding",
    )
    assert default_registry() is default_registry()


def test_one_name_from_two_plugins_is_an_error_naming_both(site):
    install(site, "nice-trees", "nice_trees", TREE_PLUGIN.format(name="nice"), "3.1")
    install(site, "more-trees", "more_trees", TREE_PLUGIN.format(name="nice"), "0.2")
    registry = Registry.discover()
    with pytest.raises(PluginError, match="claimed by") as caught:
        registry.get(Role.TREE, "nice")
    assert "nice-trees 3.1" in str(caught.value)
    assert "more-trees 0.2" in str(caught.value)
    assert not isinstance(caught.value, UnknownStrategyError)
    broken = [broken for broken in registry.broken if broken.name == "tree/nice"]
    assert len(broken) == 1
    assert "nice-trees 3.1" in str(broken[0])
    assert "more-trees 0.2" in str(broken[0])
    assert registry.get(Role.TREE, "chain").name == "chain", "others stay usable"
    assert "nice" not in [entry.name for entry in registry.strategies(Role.TREE)]


def test_one_name_in_two_roles_is_no_collision():
    registry = Registry()
    registry.register(plugin(tree=[strategy("none")], head=[strategy("none")]), "a")
    assert registry.get(Role.TREE, "none").role == Role.TREE
    assert registry.get(Role.HEAD, "none").role == Role.HEAD


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import module_that_is_not_there", "ModuleNotFoundError: No module named"),
        ("raise RuntimeError('no such\\nluck')", "RuntimeError: no such luck"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (None, "ModuleNotFoundError"),
        ("", "implements no hook"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_listed_and_named_when_a_name_is_missed(
    site, code, reason
):
    install(site, "sad-trees", "sad_trees", code, "0.1")
    registry = Registry.discover()
    (broken,) = [broken for broken in registry.broken if broken.name == "sad_trees"]
    assert broken.distribution == "sad-trees 0.1"
    assert reason in broken.reason
    assert "\n" not in broken.reason
    with pytest.raises(UnknownStrategyError, match="broken") as caught:
        registry.get(Role.TREE, "sad")
    assert "sad_trees (sad-trees 0.1)" in str(caught.value)
    assert caught.value.__cause__ is broken.error
    assert registry.get(Role.TREE, "static").name == "static", "others stay usable"


def test_a_hook_that_raises_is_named():
    def raising():
        raise KeyError("oops")

    message = refusal(Registry(), plugin(tree=raising))
    assert "hook 'eagle_tree_builders' raised KeyError: 'oops'" in message


def test_an_error_of_this_library_that_a_hook_raises_is_its_own():
    def raising():
        raise PluginError("oops")

    message = refusal(Registry(), plugin(tree=raising))
    assert "hook 'eagle_tree_builders' raised oops" in message


def test_a_generator_hook_is_read_inside_the_guard():
    def raising():
        yield strategy("fine")
        raise KeyError("late")

    assert "raised KeyError: 'late'" in refusal(Registry(), plugin(tree=raising))
    registry = Registry()
    registry.register(plugin(tree=lambda: iter([strategy("fine")])), "ok")
    assert registry.get(Role.TREE, "fine").name == "fine"


class NamesItself(StrategyConfig):
    name: str = ""


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "returned None instead of a list of Strategy"),
        (5, "returned 5 instead of a list of Strategy"),
        ([5], "returned 5, which is no Strategy"),
        (strategy("bare"), "instead of a list of Strategy"),
        ([strategy("")], "whose name is ''; it must be a word"),
        ([strategy(None)], "whose name is None"),
        ([strategy("x", config=dict)], "whose config is no subclass of StrategyConfig"),
        ([strategy("x", config=NamesItself)], "has a field 'name'; a spec uses that key"),
        ([strategy("x", build=5)], "whose build cannot be called"),
        ([strategy("x"), strategy("x")], "two strategies 'x'"),
    ],
)
def test_junk_from_a_hook_is_refused_and_named(returned, reason):
    registry = Registry()
    assert reason in refusal(registry, plugin(tree=lambda: returned))
    assert registry.strategies() == []


def test_a_misspelt_hook_is_refused_with_the_nearest_one():
    registry = Registry()
    bad = SimpleNamespace(
        eagle_tree_builder=hookimpl(lambda: [strategy("x")]),
        eagle_draft_heads=hookimpl(lambda: [strategy("y")]),
    )
    message = refusal(registry, bad)
    assert "unknown hook 'eagle_tree_builder'" in message
    assert "Did you mean 'eagle_tree_builders'?" in message
    assert registry.strategies() == [], "half a plug-in would hide the mistake"
    registry.register(plugin(tree=[strategy("z")]), "good")
    assert registry.get(Role.TREE, "z").name == "z", "a refused plug-in leaves nothing behind"


def test_a_hook_with_unknown_arguments_is_refused():
    bad = SimpleNamespace(eagle_tree_builders=hookimpl(lambda config: []))
    assert "eagle_tree_builders" in refusal(Registry(), bad)


def test_a_hook_without_its_marker_is_refused():
    def unmarked():
        return [strategy("x")]

    message = refusal(Registry(), SimpleNamespace(eagle_tree_builders=unmarked))
    assert "'eagle_tree_builders' is not marked with @eagle.plugin.hookimpl" in message


def test_the_same_object_twice_is_refused():
    registry, plug = Registry(), plugin(tree=[strategy("x")])
    registry.register(plug, "first")
    assert "registered already" in refusal(registry, plug)
    assert registry.get(Role.TREE, "x").origin.plugin == "first"


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(UnknownStrategyError) as caught:
        fakes.registry().get(Role.TREE, "statc")
    assert str(caught.value) == (
        "no tree builder is named 'statc'. Did you mean 'static'? Known: chain, none, static."
    )
    assert isinstance(caught.value, SpecError)


def test_an_empty_registry_knows_nothing():
    with pytest.raises(UnknownStrategyError, match="Known: none"):
        Registry().get(Role.TREE, "static")


def test_building_nothing_while_registering():
    def build(*arguments):
        raise AssertionError("a registry builds nothing")

    registry = Registry()
    registry.register(plugin(tree=[strategy("x", build=build)]), "a")
    assert isinstance(registry.get(Role.TREE, "x").strategy, Strategy)
