"""Strategies that only declare things, and distributions that only exist as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import Field

from eagle.plugin.hooks import hookimpl
from eagle.plugin.registry import Registry
from eagle.plugin.roles import Law, Role, Strategy, StrategyConfig
from eagle.plugin.tree import TreeShape


class Size(StrategyConfig):
    size: int | None = None


class Depth(StrategyConfig):
    depth: int = Field(default=2, ge=1)
    branching: tuple[int, ...] = ()


class Nothing(StrategyConfig):
    pass


CHAIN_OF_TWO = TreeShape(nodes=3, depth=2, siblings=1, expansions=1)


OPTIONAL = {  # what a component only has if it can do it
    *("begin_request", "end_request", "draft", "draft_vocab", "feature_layers", "following"),
    *("alternatives", "choose", "fit", "folder", "topology"),
    *("deepest_level", "train_levels", "offered", "offer", "follow", "learned", "learn"),
}


def never(*arguments: Any) -> Any:
    raise AssertionError("a spec was checked, yet something ran")


@dataclass
class Component:
    """Has every attribute of every role, so that a test changes only the one it is about."""

    size: int | None = None
    layers: tuple[int, ...] = ()
    capturable: bool = True
    lossless: bool = True
    laws: frozenset[Law] = frozenset({Law.TOP_K})
    shape: TreeShape = CHAIN_OF_TWO
    uniforms: int = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in OPTIONAL:
            raise AttributeError(name)
        return never

    def feature_size(self, target: Any) -> int:
        return self.size or target.hidden_size


def strategy(
    name: str,
    config: type[StrategyConfig] = Nothing,
    *,
    build: Any = None,
    laws: frozenset[Law] = frozenset({Law.TOP_K}),
    **attributes: Any,
) -> Strategy[Any]:
    """Return a strategy whose component has the given attributes."""
    fields = {"laws": laws} | attributes
    return Strategy(
        name=name,
        config=config,
        build=build or (lambda settings, context: Component(**fields)),
        description=f"the {name}",
    )


HOOKS = {
    Role.FEATURES: "eagle_feature_extractors",
    Role.HEAD: "eagle_draft_heads",
    Role.TREE: "eagle_tree_builders",
    Role.ATTENTION: "eagle_attention_backends",
    Role.ACCEPTANCE: "eagle_acceptance_rules",
    Role.LOSS: "eagle_training_losses",
}


def plugin(**strategies: Any) -> SimpleNamespace:
    """Return a plug-in; keywords are roles, values lists of strategies or functions."""
    hooks = {}
    for role, found in strategies.items():
        function = found if callable(found) else lambda found=found: found
        hooks[HOOKS[Role(role)]] = hookimpl(_bare(function))
    return SimpleNamespace(**hooks)


def _bare(function: Any) -> Any:
    def hook() -> Any:
        return function()

    return hook


def registry(**replaced: list[Strategy[Any]]) -> Registry:
    """Return a registry with one strategy per role, some roles replaced."""
    both = frozenset({Law.TOP_K, Law.WITHOUT_REPLACEMENT})
    shape = TreeShape(nodes=1, depth=0, siblings=0, expansions=0)
    strategies = {
        "features": [strategy("last-hidden", Size), strategy("auto", Size)],
        "head": [strategy("eagle"), strategy("none"), strategy("auto")],
        "tree": [
            strategy("static", Depth),
            strategy("chain", Depth),
            strategy("none", laws=frozenset(), shape=shape),
        ],
        "attention": [strategy("auto"), strategy("sdpa")],
        "acceptance": [strategy("speculative", laws=both)],
    }
    made = Registry()
    made.register(plugin(**(strategies | replaced)), "fake", "fake-strategies", "1.0")
    return made


def install(
    folder: Path, distribution: str, module: str, code: str | None, version: str = "1.0"
) -> None:
    """Write a distribution with one plug-in to a folder of the import path.

    Args:
        folder: which folder.
        distribution: its name.
        module: name of the module and of the entry point.
        code: the module's text, or None for an entry point that leads nowhere.
        version: its version.
    """
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(f"[eagle.plugins]\n{module} = {module}\n")
    if code is not None:
        (folder / f"{module}.py").write_text(code)


TREE_PLUGIN = """
from eagle.plugin import hookimpl
from eagle.plugin import Strategy, StrategyConfig

@hookimpl
def eagle_tree_builders():
    return [
        Strategy(
            name={name!r},
            config=StrategyConfig,
            build=lambda settings, context: None,
            description="does nothing",
        )
    ]
"""
