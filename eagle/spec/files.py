"""Where specs lie and how one is read, with overrides; knows no strategy, and builds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from eagle.errors import SpecError, brief, clipped, nearest
from eagle.host import expanded
from eagle.spec.document import Document
from eagle.spec.schema import DEFAULT_STRATEGIES, DecoderSpec

__all__ = ["load_spec", "shipped_specs"]


def shipped_specs() -> dict[str, Path]:
    """Return the files of the specs that come with the package, by name."""
    folder = Path(str(resources.files("eagle.specs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_spec(spec: str | Path, overrides: Sequence[str] = ()) -> DecoderSpec:
    """Read a decoder spec.

    Args:
        spec: name of a shipped spec, or path of a YAML file.
        overrides: ``path.to.key=value`` each, values in YAML; ``tree.depth=3`` keeps the tree's
            strategy, ``tree=chain`` replaces it with all its settings.

    Raises:
        SpecError: there is no such spec, it is not YAML, or a key or value is wrong.
    """
    if not isinstance(spec, (str, Path)):
        raise SpecError(
            f"a spec is given by a shipped spec's name or a YAML file's path, not as "
            f"{type(spec).__name__}"
        )
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise SpecError(
            f"overrides are a list of 'path.to.key=value', not {type(overrides).__name__}"
        )
    if odd := [item for item in overrides if not isinstance(item, str)]:
        raise SpecError(f"overrides are 'path.to.key=value' each, not {type(odd[0]).__name__}")
    document = _find(spec).override(
        overrides, {role.value: name for role, name in DEFAULT_STRATEGIES.items()}
    )
    loaded = document.validate(DecoderSpec, document.data)
    if not loaded.name:
        loaded = loaded.model_copy(update={"name": Path(spec).stem})
    loaded._document = document
    return loaded


def _find(spec: str | Path) -> Document:
    shipped = shipped_specs()
    if str(spec) in shipped:
        found = Document.read(shipped[str(spec)])
        # Nobody means the installed package's folder by a relative path.
        return replace(found, label=str(spec), folder=Path())
    path = expanded(spec)
    try:
        if path.is_file() or path.suffix in (".yaml", ".yml"):
            return Document.read(path)
    except (OSError, ValueError) as error:  # too long, or with a NUL
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"{brief(str(spec))} names no spec and no file: {why}") from error
    raise SpecError(
        f"no spec is named {clipped(str(spec))!r}, and there is no such file."
        f"{nearest(str(spec), shipped)} Shipped: {', '.join(shipped)}."
    )
