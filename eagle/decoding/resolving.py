"""A spec resolved against its target, which need not be loaded; builds no decoder."""

from __future__ import annotations

from eagle.errors import TargetError, brief
from eagle.plugin import BuildContext, Registry
from eagle.spec import DecoderSpec, Resolved, resolve
from eagle.target import Target, loading, resolve_device

__all__ = ["resolve_for"]


def resolve_for(spec: DecoderSpec, registry: Registry, target: Target | None = None) -> Resolved:
    """Resolve a spec against its target's configuration, or against a loaded target.

    Raises:
        EagleError: see `Decoder.from_spec`.
    """
    resolve(spec, registry)  # without the target first: a typo should not cost a download
    if target is not None:
        info, device, path = target.info, target.device, target.model.name_or_path
    else:
        source = _located(spec)
        info, device = loading.describe(source)[0], resolve_device(spec.target.device)
        path = source.path
    context = BuildContext(info, device, spec.folder, loading.folder_of(path, spec.target.revision))
    return resolve(spec, registry, context)


def _located(spec: DecoderSpec) -> loading.Source:
    try:
        return loading.locate(spec.target, spec.folder)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, nobody's ~home
        why = getattr(error, "strerror", None) or error
        name = brief(spec.target.model)
        raise TargetError(f"target.model: {name} is no path: {why}") from error
