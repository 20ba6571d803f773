"""From a spec to components that go together; knows the order of steps, and loads no weights."""

from __future__ import annotations

from eagle.plugin import ROLES, BuildContext, Registry
from eagle.spec.compatibility import check, fit_to
from eagle.spec.components import configure, lookup, make, nesting
from eagle.spec.resolved import Resolved
from eagle.spec.schema import DecoderSpec

__all__ = ["resolve"]


def resolve(spec: DecoderSpec, registry: Registry, context: BuildContext | None = None) -> Resolved:
    """Build a spec's components and check that they go together; no weight is loaded.

    Args:
        spec: the spec.
        registry: where its strategies are looked up.
        context: the target's sizes if they are known; without, feature sizes are not compared.

    Raises:
        UnknownStrategyError: no plug-in provides a strategy.
        SpecError: a strategy's settings are wrong.
        IncompatibleError: the strategies' declarations exclude each other.
        PluginError: a plug-in raises, or its component is not what it declares.
    """
    context = context or BuildContext(folder=spec.folder)
    context = nesting(spec.document, registry, context)
    # Names first, then settings, so that a wrong name shows before a wrong setting of another.
    strategies = {
        role: lookup(spec.document, registry, role, spec.component(role)) for role in ROLES
    }
    configs = {
        role: configure(spec.document, strategies[role], spec.component(role)) for role in ROLES
    }
    made = {role: make(strategies[role], configs[role], context) for role in ROLES}
    resolved = Resolved(spec, strategies, **{role.value: made[role] for role in ROLES})
    check(resolved, registry)
    return resolved if context.target is None else fit_to(context.target, resolved)
