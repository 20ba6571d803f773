"""Failing where several processes hold a target: the others are told of it, and what is told is
raised. It knows what keeps processes together, not what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eagle.target import Together

__all__ = ["telling"]


@contextmanager
def telling(
    together: Together | None,
    *,
    joined: Callable[[], bool] = lambda: True,
    ahead: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Do what all processes do at once; tell the others where it fails here.

    What is raised then is what the others are told, from what failed. Where this process is
    interrupted, it does nothing more with the others.

    Args:
        together: the processes; None where this one holds the target by itself.
        joined: whether the others are doing it too by the time it fails.
        ahead: whether they may have gone on to what comes behind it by then.
    """
    try:
        yield
    except Exception as error:
        told = error
        if together is not None and joined():
            told = together.failed(error, ahead=ahead())
        if told is error:
            raise
        raise told from error
    except BaseException:  # Ctrl-C, in the middle of it
        if together is not None and joined():
            together.abandon("interrupted")
        raise
