"""From what a user writes for a target to where its files are; opens no model's configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eagle.errors import TargetError, clipped
from eagle.host import expanded, is_there
from eagle.spec import TargetSpec
from eagle.target import adapters

__all__ = ["Source", "folder_of", "locate"]

_LONGEST_ID = 200  # of a Hub id, with room to spare


@dataclass(frozen=True)
class Source:
    """Where a target's files are: arguments of every `from_pretrained`.

    Attributes:
        name: as the spec has it.
        path: a folder, or a Hub id.
        options: further arguments.
        cached: whether the folder is in this package's cache, and made anew where it is missing.
        adapter: the folder of an adapter that goes onto it, if one does.
    """

    name: str
    path: str
    options: dict[str, Any]
    cached: bool = False
    adapter: Path | None = None


def locate(spec: TargetSpec, folder: Path | None = None) -> Source:
    """Resolve an embedded model, a folder, a GGUF file or a Hub id, and an adapter's folder.

    A folder that holds an adapter and no model stands for the model that it was made for, with
    the adapter.

    Args:
        spec: the target.
        folder: of the spec file; a relative path is looked for there, then where the user stands.

    Raises:
        TargetError: a path that does not exist.
        AssetError: the embedded model is not in the cache and cannot be fetched.
    """
    adapter = _adapter(spec, folder)
    if adapter is not None:
        own = spec.model_copy(update={"adapter": None})
        if spec.adapter is None:
            own = own.model_copy(update={"model": _base(adapter)})
        try:
            return replace(_locate(own, folder), name=spec.model, adapter=adapter)
        except TargetError as error:
            if spec.adapter is not None:
                raise
            raise TargetError(
                f"target.model: {adapter} is an adapter for {own.model!r}, which is not there "
                f"({error}); give its model as target.model, and the adapter as target.adapter"
            ) from error
    return _locate(spec, folder)


def _adapter(spec: TargetSpec, folder: Path | None) -> Path | None:
    """Return the folder of a spec's adapter, or None where it has none."""
    given = spec.adapter or spec.model
    path = expanded(given)
    beside = (folder or Path()) / path
    path = beside if is_there(beside) else path
    if spec.adapter is None:
        return path if is_there(path) and path.is_dir() and adapters.is_adapter(path) else None
    if not is_there(path) or not path.is_dir():
        raise TargetError(
            f"target.adapter: there is no folder {clipped(str(path))}; give the folder of a PEFT "
            "adapter"
        )
    adapters.base_of(path)
    return path


def _base(adapter: Path) -> str:
    """Return what an adapter's base is, a path that starts at the adapter's folder if it is one."""
    base = adapters.base_of(adapter)
    beside = adapter / base
    return str(beside) if is_there(beside) else base


def _locate(spec: TargetSpec, folder: Path | None) -> Source:
    from eagle import assets

    # Said to every loader, since transformers asks on standard input where nothing is said.
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    asset = assets.ASSETS.get(spec.model)
    if asset is not None and asset.kind == "model":
        return Source(spec.model, str(assets.model_folder(spec.model)), options, cached=True)
    path = expanded(spec.model)
    beside = (folder or Path()) / path
    path = beside if is_there(beside) else path
    if not is_there(path) and len(spec.model) > _LONGEST_ID:
        raise TargetError(
            f"target.model: {clipped(spec.model)!r} is too long for a path or a Hub id"
        )
    if path.suffix == ".gguf":
        if not path.is_file():
            raise TargetError(f"target.model: there is no file {path}")
        return Source(spec.model, str(path.parent), options | {"gguf_file": path.name})
    if path.is_dir():
        return Source(spec.model, str(path), options)
    if path.exists():
        raise TargetError(f"target.model: {path} is a file; give a .gguf file or a model's folder")
    if spec.model.startswith((".", "/", "~")) or spec.model.count("/") > 1:
        raise TargetError(f"target.model: there is no folder {path}")
    if spec.revision:
        options["revision"] = spec.revision
    return Source(spec.model, spec.model, options)


def folder_of(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model's files, or None where they are not on this machine.

    Args:
        path: a folder, or a Hub id of which at least the configuration was fetched.
        revision: of a Hub id.
    """
    from huggingface_hub import try_to_load_from_cache

    if not path or Path(path).is_dir():
        return Path(path) if path else None
    try:
        found = try_to_load_from_cache(path, "config.json", revision=revision)
    except ValueError:  # it is no Hub id: the name of a model made in memory, say
        return None
    return Path(found).parent if isinstance(found, str) else None
