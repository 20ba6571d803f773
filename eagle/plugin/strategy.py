"""What a plug-in registers and what a spec builds from it; knows no role's methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict

from eagle.plugin.tree import Law

__all__ = ["BuildContext", "Role", "Strategy", "StrategyConfig", "TargetInfo"]


class Role(StrEnum):
    """The question that a strategy answers; the values are the keys of a spec."""

    FEATURES = "features"
    HEAD = "head"
    TREE = "tree"
    ATTENTION = "attention"
    ACCEPTANCE = "acceptance"


class StrategyConfig(BaseModel):
    """Base of a strategy's settings in a spec; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class TargetInfo:
    """What is known of a target from its configuration, before any weight is loaded.

    Attributes:
        name: as the user wrote it.
        hidden_size: H.
        vocab_size: V, rows of the LM head.
        layers: decoder layers.
        max_positions: longest text the model was made for.
    """

    name: str
    hidden_size: int
    vocab_size: int
    layers: int
    max_positions: int


@dataclass(frozen=True)
class BuildContext:
    """What a strategy's `build` may use.

    Attributes:
        target: the target, or None when a spec is checked without one at hand.
        device: where the target is, or None likewise.
        folder: folder of the spec file; relative paths in a config start here.
    """

    target: TargetInfo | None = None
    device: torch.device | None = None
    folder: Path = field(default_factory=Path)


ComponentT = TypeVar("ComponentT", covariant=True)


@dataclass(frozen=True)
class Strategy(Generic[ComponentT]):
    """One named factory, as a plug-in registers it.

    Attributes:
        name: how a spec selects it; unique within its role.
        config: settings that a spec may give, with their defaults.
        build: called with the settings and a `BuildContext` when a spec is resolved. It loads no
            weights: what it returns must be able to state its declarations.
        description: one line for `eagle plugins`.
        laws: tree builders: every law it can draw siblings by. Acceptance rules: those under
            which it is lossless.
        lossless: False for an acceptance rule that changes the output distribution.
    """

    name: str
    config: type[StrategyConfig]
    build: Callable[[Any, BuildContext], ComponentT]
    description: str
    laws: frozenset[Law] = frozenset()
    lossless: bool = True
