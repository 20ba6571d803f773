"""The head that a folder holds, whatever it is: `eagle` or `eagle3`, told by its files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from eagle.plugin import BuildContext, SpecError
from eagle_plugins.heads.checkpoint import locate
from eagle_plugins.heads.eagle import EagleConfig, EagleHead
from eagle_plugins.heads.eagle3 import Eagle3Config, Eagle3Head
from eagle_plugins.heads.layouts import identify

__all__ = ["AutoConfig", "any_head"]

_EAGLE3 = ("layers", "norm_before_residual", "feed_back")


class AutoConfig(EagleConfig):
    """Settings of the `auto` head; those beside `EagleConfig`'s are for heads of EAGLE-3 alone."""

    layers: Literal["auto"] | Annotated[tuple[int, ...], Field(min_length=1)] = "auto"
    """See `Eagle3Config`."""

    norm_before_residual: Literal["auto"] | bool = "auto"
    """See `Eagle3Config`."""

    feed_back: Literal["auto", "before-norm", "after-norm"] = "auto"
    """See `Eagle3Config`."""


def any_head(config: AutoConfig, context: BuildContext) -> EagleHead | Eagle3Head:
    """Return the head that goes with the files.

    Without a target, a folder on this machine is looked at, and nothing is asked for; until its
    files are known, a head is taken for one of EAGLE-1.

    Raises:
        CheckpointError: there are no such files.
        SpecError: settings of EAGLE-3 are given for another head.
    """
    name = context.target.name if context.target else None
    known = context.target is not None or (context.folder / config.weights).is_dir()
    if known and not context.fresh:
        folder = locate(config.weights, name, context.folder)
        if identify(folder).method == "eagle3":
            return Eagle3Head(Eagle3Config(**config.model_dump()), context)
        if given := [key for key in _EAGLE3 if getattr(config, key) != "auto"]:
            raise SpecError(f"head.{given[0]}: {folder} holds no head of EAGLE-3, which it is for")
    return EagleHead(EagleConfig(weights=config.weights, lm_head=config.lm_head), context)
