"""From the specs that a benchmark names to decoders, telling on stderr what takes the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from eagle.cli import console
from eagle.cli.decoding import warn_if_lossy, working
from eagle.cli.options import settings_of

if TYPE_CHECKING:
    from eagle.bench import Shape, Subjects
    from eagle.spec import DecoderSpec

__all__ = ["load_all", "prepare_all"]


def load_all(
    specs: Sequence[str], settings: Sequence[str], target: str | None
) -> list[DecoderSpec]:
    """Read what is measured; nothing heavy is loaded yet."""
    with working("loading"):
        from eagle.spec import load_spec

        given = settings_of(settings, target)
        loaded = [load_spec(spec, given) for spec in specs]
        for one in loaded:
            console.follow(one.target.tp_plan)
        return loaded


def prepare_all(
    specs: Sequence[DecoderSpec], shape: Shape | None, failed: dict[str, str] | None = None
) -> Subjects:
    """Load what is measured, telling on stderr what takes the time; see `eagle.bench.prepare`."""
    with working("loading"):
        from eagle.bench import prepare

    with working("loading") as status:

        def progress(what: str) -> None:
            if status is not None:
                status.update(f"{escape(what)} ...")

        subjects = prepare(specs, shape, progress, failed)
    for decoder in subjects.decoders.values():
        warn_if_lossy(decoder)
    return subjects
