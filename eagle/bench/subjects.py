"""From specs to decoders that share one target, in its own shape or widened; measures nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle.bench.places import wider_layers
from eagle.bench.shapes import Shape
from eagle.bench.widen import label, widen_model
from eagle.bench.widen_head import widen_head
from eagle.decoding import Decoder, resolve_for
from eagle.errors import EagleError, RequestError, reason
from eagle.plugin import MeasuredHead, RankRates, Role, default_registry
from eagle.spec import DEFAULT_STRATEGIES, NONE, ComponentSpec, DecoderSpec
from eagle.target import (
    Target,
    Together,
    load_target,
    loading,
    meet,
    quantizing,
    resolve_device,
    resolve_dtype,
)

__all__ = ["Subjects", "prepare"]

_RULE = ComponentSpec(name=DEFAULT_STRATEGIES[Role.ACCEPTANCE])


@dataclass(frozen=True)
class Subjects:
    """What is measured.

    Attributes:
        label: what the target is, to be shown with every figure.
        specs: as they were asked for, by name.
        decoders: by the same names; they share one target.
    """

    label: str
    specs: dict[str, DecoderSpec]
    decoders: dict[str, Decoder]

    @property
    def target(self) -> Target:
        """The target that all of them decode."""
        return next(iter(self.decoders.values())).target


def prepare(
    specs: Sequence[DecoderSpec],
    shape: Shape | None = None,
    progress: Callable[[str], None] = lambda what: None,
    failed: dict[str, str] | None = None,
) -> Subjects:
    """Load the target of some specs, widen it if asked to, and build a decoder for each spec.

    Args:
        specs: at least one, of different names and with the same target.
        shape: what target and heads are embedded in; None for their own.
        progress: called with what is begun.
        failed: takes in, by name, why a spec other than the first cannot run, instead of a failure.

    Raises:
        RequestError: two specs have one name or different targets, or a head cannot be widened.
        EagleError: see `Decoder.from_spec` and `widen_model`.
    """
    named = {spec.name: spec for spec in specs}
    first = specs[0]
    if len(named) < len(specs):
        raise RequestError("two of the specs have the same name; give each one once")
    build = _Builder(first, failed)
    if failed is None:
        for spec in specs:
            build.check(spec)
    resolve_for(first, default_registry())  # before any weight is loaded
    progress(f"loading {first.target.model}")
    if shape is None:
        target = load_target(first.target, first.folder, first.runtime.quantize)
        decoders = build.all(named, lambda spec: Decoder.from_spec(spec, target=target))
        return Subjects(first.target.model, {name: named[name] for name in decoders}, decoders)

    source = loading.locate(first.target, first.folder)
    together = meet(first.target, shape.config(loading.describe(source)[1]), shape.name)
    device = resolve_device(first.target.device)
    if together is not None and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())  # each process has its own
    model = loading.load_model(source, resolve_dtype(first.target.dtype, device), device)
    tokenizer = loading.load_tokenizer(source)
    progress(f"building the {shape.name} shape")
    # Before the source is a target itself, which rearranges its weights.
    wide_model = widen_model(model, shape, together=together)
    if first.runtime.quantize is not None:
        quantizing.quantize(wide_model, first.runtime.quantize)
    narrow = Target(model, tokenizer, first.target.model)
    title = label(first.target.model, shape)
    wide = Target(wide_model, tokenizer, title)
    wide.cut_draft = first.target.cut_draft

    def widened(spec: DecoderSpec) -> Decoder:
        progress(f"widening the head of {spec.name}")
        return _widened(spec, narrow, wide, shape)

    decoders = build.all(named, widened)
    return Subjects(title, {name: named[name] for name in decoders}, decoders)


class _Builder:
    """Builds the decoders of specs that have the first one's target."""

    def __init__(self, first: DecoderSpec, failed: dict[str, str] | None) -> None:
        self._first, self._failed = first, failed

    def all(
        self, specs: dict[str, DecoderSpec], make: Callable[[DecoderSpec], Decoder]
    ) -> dict[str, Decoder]:
        """Return the decoders by name, those left out that cannot be built."""
        made = {}
        for name, spec in specs.items():
            try:
                self.check(spec)
                made[name] = make(spec)
            except EagleError as error:
                if self._failed is None or spec is self._first:
                    raise
                self._failed[name] = reason(error)
        return made

    def check(self, spec: DecoderSpec) -> None:
        """Refuse a spec of another target."""
        first = self._first
        if (spec.target, spec.runtime.quantize) != (first.target, first.runtime.quantize):
            raise RequestError(
                f"one run compares specs of one target; {first.name!r} has "
                f"{first.target.model!r} and {spec.name!r} {spec.target.model!r}, or another "
                "dtype, device or runtime.quantize; --target gives all of them the same"
            )


def _widened(spec: DecoderSpec, narrow: Target, wide: Target, shape: Shape) -> Decoder:
    """Build a spec's decoder for the wide target, with its head widened likewise."""
    if spec.head.name == NONE:
        return Decoder.from_spec(spec, target=wide)
    with _folder(wide.together) as folder:
        parts = {
            "head": _wide_head(spec, spec.head, narrow, wide, shape, folder),
            "features": _moved(spec.features, narrow, shape),
        }
        return Decoder.from_spec(spec.model_copy(update=parts), target=wide)


def _wide_head(
    spec: DecoderSpec,
    head: ComponentSpec,
    narrow: Target,
    wide: Target,
    shape: Shape,
    folder: Path,
) -> ComponentSpec:
    """Return a head for the wide target: with its weights widened, or those that it is made of.

    One that has no weights at all looks text up, or asks a model of its own.
    """
    registry = default_registry()
    asked = registry.get(Role.HEAD, head.name).strategy.config.model_validate(head.settings)
    own = {name: getattr(asked, name) for name in type(asked).model_fields}
    nested = {
        name: [
            _wide_head(spec, one, narrow, wide, shape, folder / f"{name}-{number}").model_dump()
            for number, one in enumerate(heads)
        ]
        for name, heads in own.items()
        if isinstance(heads, tuple) and heads and isinstance(heads[0], ComponentSpec)
    }
    if nested or "weights" not in own:
        return _moved(head, narrow, shape, **nested)
    if wide.leads:
        _write_wide(spec, head, narrow, shape, folder)
    if wide.together is not None:
        wide.together.least(0)  # until it is written
    return _moved(head, narrow, shape, weights=str(folder))


def _write_wide(
    spec: DecoderSpec, head: ComponentSpec, narrow: Target, shape: Shape, folder: Path
) -> None:
    """Write the checkpoint of a head that is widened, and how often it is right."""
    # Not a decoder, which would fit its tree to what the narrow target costs; and by itself, since
    # not every tree and rule that goes with a spec's head goes with each that it is made of.
    alone = {"head": head, "tree": ComponentSpec(name="chain"), "acceptance": _RULE}
    resolved = resolve_for(spec.model_copy(update=alone), default_registry(), narrow)
    resolved.head.load(narrow, resolved.attention)
    folder.mkdir(parents=True, exist_ok=True)  # of a cascade within a cascade, say
    widen_head(resolved.head, narrow.info, shape, folder)
    if isinstance(resolved.head, MeasuredHead):
        rates = RankRates.read(resolved.head.folder)
        if rates is not None:
            rates.write(folder)  # the same function is right as often


@contextmanager
def _folder(together: Together | None) -> Iterator[Path]:
    """Yield a folder for a moment, the same in all processes that hold a target on this machine."""
    with tempfile.TemporaryDirectory(prefix="eagle-wide-head-") as own:
        if together is None:
            yield Path(own)
            return
        yield Path(together.share(own))
        together.least(0)  # until all have read it


def _moved(part: ComponentSpec, narrow: Target, shape: Shape, **changes: Any) -> ComponentSpec:
    """Return a part of a spec for the wide target, whose layers it may name."""
    settings = {**part.settings, **changes}
    if isinstance(layers := settings.get("layers"), (list, tuple)):
        settings["layers"] = list(wider_layers(layers, narrow.info, shape))
    return ComponentSpec.model_validate({"name": part.name, **settings})
