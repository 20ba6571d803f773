"""A spec's components as they go into a decoder; knows none of their strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from eagle.errors import EagleError, PluginError
from eagle.plugin import (
    ROLES,
    AcceptanceRule,
    AttentionBackend,
    Component,
    DraftHead,
    FeatureExtractor,
    Registered,
    Role,
    TreeBuilder,
)
from eagle.spec.blame import culprit
from eagle.spec.schema import DecoderSpec

__all__ = ["Resolved"]


@dataclass(frozen=True)
class Resolved:
    """A spec's components, built and found compatible, without weights."""

    spec: DecoderSpec
    strategies: Mapping[Role, Registered]
    features: FeatureExtractor
    head: DraftHead
    tree: TreeBuilder
    attention: AttentionBackend
    acceptance: AcceptanceRule

    @property
    def lossless(self) -> bool:
        """Whether the output has exactly the target's distribution."""
        return self.acceptance.lossless

    @property
    def capturable(self) -> bool:
        """Whether no component reads the device on the host in a cycle, as graphs will need."""
        return not self.on_host

    @property
    def on_host(self) -> tuple[Role, ...]:
        """The roles whose components read the device on the host in a cycle."""
        return tuple(role for role, one in self.components.items() if not one.capturable)

    @property
    def components(self) -> dict[Role, Component]:
        """The components by role."""
        return {role: getattr(self, role.value) for role in ROLES}

    def blame(self, error: BaseException) -> PluginError | None:
        """Return an error that names the component that an exception is put down to, or None."""
        return culprit(self.strategies, self.components, error)

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Let an exception that a component raises name the component; see `blame`."""
        try:
            yield
        except EagleError:
            raise
        except Exception as error:
            blamed = self.blame(error)
            if blamed is None:
                raise
            raise blamed from error
