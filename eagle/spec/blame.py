"""Whose doing an exception is: of a component that was called, or of one that the loop went by.

Knows tracebacks and where strategies come from; knows no role's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from eagle.errors import EagleError, PluginError
from eagle.plugin import ROLE_TITLES, Breach, Component, Registered, Role, describe

__all__ = ["culprit", "guarded"]

_OWN = "eagle-decoding"  # the distribution of this package

T = TypeVar("T")


def guarded(entry: Registered, where: str, call: Callable[[], T]) -> T:
    """Return what *call* does, a strategy's own code.

    Args:
        entry: the strategy.
        where: what is called of it, for messages.
        call: the call.

    Raises:
        EagleError: it raises one, or a `PluginError` that names the strategy.
    """
    try:
        return call()
    except EagleError:
        raise
    except Exception as error:
        raise _raised(entry, where, error) from error


def culprit(
    strategies: Mapping[Role, Registered],
    components: Mapping[Role, Component],
    error: BaseException,
) -> PluginError | None:
    """Return an error that names the component in which an exception arose, if one did.

    An exception of the loop may come of what a component returned, so it names the components
    that are of other distributions. None where there is nobody but this package.

    Reading the traceback costs nothing until something is raised, unlike a wrapper around every
    call that the loop makes.

    Args:
        strategies: of each role.
        components: what was built of them.
        error: the exception, which has been raised.
    """
    if isinstance(error, Breach):
        entry = strategies[error.role]
        return PluginError(f"{entry}, {entry.origin}: {error.problem}")
    frames = []
    trace = error.__traceback__
    while trace:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        for role, component in components.items():
            if frame.f_locals.get("self") is component:
                where = f"{frame.f_code.co_name}()"
                return _raised(strategies[role], where, error)
    return _suspected(strategies, error)


def _raised(entry: Registered, where: str, error: BaseException) -> PluginError:
    return PluginError(f"{entry}, {entry.origin}: {where} raised {describe(error)}")


def _suspected(strategies: Mapping[Role, Registered], error: BaseException) -> PluginError | None:
    others = {
        role: entry for role, entry in strategies.items() if entry.origin.distribution != _OWN
    }
    if not others:
        return None
    names = " and ".join(map(str, others.values()))
    checks = ", ".join(f"check_{'_'.join(ROLE_TITLES[role].split())}" for role in others)
    return PluginError(
        f"the loop raised {describe(error)}, perhaps by what {names} returned, not of this "
        f"package; eagle.testing ({checks}) tells whether it is what its role asks for"
    )
