"""What a plug-in registers and what a spec builds from it; knows no role's methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from eagle.errors import SpecError

__all__ = [
    "ROLES",
    "BuildContext",
    "ComponentSpec",
    "Role",
    "Strategy",
    "StrategyConfig",
    "TargetInfo",
]


class Role(StrEnum):
    """The question that a strategy answers; the values are the keys of a spec."""

    FEATURES = "features"
    HEAD = "head"
    TREE = "tree"
    ATTENTION = "attention"
    ACCEPTANCE = "acceptance"
    LOSS = "loss"


ROLES = (Role.FEATURES, Role.HEAD, Role.TREE, Role.ATTENTION, Role.ACCEPTANCE)
"""The five of a decoder; the loss is one of training alone."""


class ComponentSpec(BaseModel):
    """One role's strategy: in YAML its name, or a mapping of `name` and the strategy's settings.

    A strategy that builds others has such a field in its settings for each; see
    `BuildContext.build`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(min_length=1)]

    @property
    def settings(self) -> dict[str, Any]:
        """What is given for the strategy's config, as it was written."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, ComponentSpec) or (isinstance(value, Mapping) and "name" in value):
            return value
        raise ValueError("should be a strategy's name, or a mapping with `name` and its settings")

    @model_serializer
    def _to_yaml(self) -> str | dict[str, Any]:
        return {"name": self.name, **self.settings} if self.settings else self.name


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
        checkpoint: folder of the target's own files, in which a head's may be too (the modules of
            multi-token prediction, say). None where it is not known, or not on this machine yet.
        fresh: whether weights are made anew, for training: files that settings name are not read.
        builder: what `build` calls; a spec's is put here when it is resolved.
    """

    target: TargetInfo | None = None
    device: torch.device | None = None
    folder: Path = field(default_factory=Path)
    checkpoint: Path | None = None
    fresh: bool = False
    builder: Callable[[Role, ComponentSpec, BuildContext], Any] | None = field(
        default=None, compare=False, repr=False
    )

    def build(self, role: Role, nested: ComponentSpec) -> Any:
        """Build another component, from a spec within this component's own settings.

        What is built is the caller's: nobody else loads it, allocates its cache or checks what it
        declares. The caller's own declarations must hold for both.

        Args:
            role: of the other component.
            nested: its strategy and settings.

        Raises:
            SpecError: there is no such strategy, or its settings are wrong.
        """
        if self.builder is None:
            raise SpecError(
                f"{role.value} {nested.name!r} is to be built within another component, which "
                "only happens when a spec is resolved (eagle.spec.resolve)"
            )
        return self.builder(role, nested, self)


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
    """

    name: str
    config: type[StrategyConfig]
    build: Callable[[Any, BuildContext], ComponentT]
    description: str
