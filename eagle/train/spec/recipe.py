"""Training specs by name or path: YAML to a checked `TrainSpec`; trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eagle.errors import SpecError, nearest
from eagle.plugin import BuildContext, Role, default_registry
from eagle.spec import Document, built
from eagle.train.spec.config import LossSpec, TrainSpec

__all__ = ["load_train_spec", "shipped_train_specs"]


def shipped_train_specs() -> dict[str, Path]:
    """Return the files of the training specs that come with the package, by name."""
    from importlib import resources

    folder = Path(str(resources.files("eagle.specs"))) / "train"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_train_spec(spec: str | Path, overrides: Sequence[str] = ()) -> TrainSpec:
    """Read a training spec.

    Args:
        spec: path of a YAML file, or name of a shipped spec.
        overrides: ``path.to.key=value`` each, values in YAML.

    Raises:
        SpecError: there is no such file, it is not YAML, or a key or value is wrong.
    """
    shipped = shipped_train_specs()
    path = Path(spec).expanduser()
    if str(spec) in shipped:
        found = Document.read(shipped[str(spec)])
        # Nobody means the installed package's folder by a relative path.
        document = Document(str(spec), found.data, found.places)
    elif path.is_file() or path.suffix in (".yaml", ".yml"):
        document = Document.read(path)
    else:
        raise SpecError(
            f"no training spec is named {str(spec)!r}, and there is no such file."
            f"{nearest(str(spec), shipped)} Shipped: {', '.join(shipped)}."
        )
    defaults = {"features": "last-hidden", "head": "eagle", "loss": LossSpec().name}
    document = document.override(overrides, defaults)
    loaded = document.validate(TrainSpec, document.data)
    loaded._document = document
    registry, loss = default_registry(), loaded.loss.strategy
    # One that is registered by hand is looked up when a run begins.
    if any(entry.name == loss.name for entry in registry.strategies(Role.LOSS)):
        built(document, registry, Role.LOSS, loss, BuildContext(folder=document.folder))
    return loaded
