"""What the folder of a draft head holds, told by its configuration and its tensors' names.

Knows how heads are published; reads no weight and builds no network. Sources: SafeAILab/EAGLE
(``eagle/model/cnets.py``, ``cnets1.py``), vllm-project/speculators (``src/speculators/config.py``),
z-lab/dflash, FasterDecoding/Medusa, HArmonizedSS/HASS and huggingface/peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.plugin import (
    CheckpointError,
    HeadFiles,
    Stored,
    read_json,
    stored_in,
)

__all__ = ["Layout", "identify"]

_PREFIX = "model."
_TRAIN = "give a head of EAGLE-1 or EAGLE-2 for this target, or train one with `eagle train`"
_TITLES = {
    "eagle": "a draft head of EAGLE-1 or EAGLE-2",
    "eagle3": "a draft head of EAGLE-3",
    "speculators": "a draft model in the layout of speculators",
    "medusa": "a set of Medusa heads",
    "dflash": "a DFlash draft model",
    "dspark": "a DSpark draft model",
    "peagle": "a draft head of P-EAGLE",
    "language-model": "a whole language model, not a draft head",
    "peft": "a PEFT adapter, not a draft head",
}
_ADVICE = {
    "eagle": "use it with head.name=eagle, or head.name=auto for whatever a folder holds",
    "eagle3": "use it with head.name=eagle3, or head.name=auto for whatever a folder holds; or "
    f"{_TRAIN}",
    "medusa": f"use it with head.name=medusa, or {_TRAIN}",
    "dflash": f"use it with head.name=parallel, or {_TRAIN}",
    "peagle": f"use it with head.name=parallel, or {_TRAIN}",
    "language-model": f"if it is the target, give it as target.model; otherwise {_TRAIN}",
    "peft": "merge it into its model (merge_and_unload of peft), and give that as target.model",
}


_BEYOND = ("dspark", "peagle")
"""What is told from an EAGLE-3 head by its tensors alone."""


@dataclass(frozen=True)
class Layout(HeadFiles):
    """The folder of a draft head; ``model.`` in front of tensors' names is taken off.

    Attributes:
        method: what it is a head of: ``eagle`` (EAGLE-1 and 2), ``eagle3``, or the name of
            something that is not read here.
    """

    method: str

    @property
    def publisher(self) -> str:
        """Whose way of writing it is: ``authors``, ``specforge`` (SGLang's too), ``speculators``.

        They differ in names of tensors, and in what some keys of the configuration mean.
        """
        if _speculators(self.config):
            return "speculators"
        return "specforge" if "Eagle3" in _architectures(self.config) else "authors"

    def require(self, method: str) -> None:
        """Refuse a head of another method.

        Raises:
            CheckpointError: naming what it is, and what to do.
        """
        if self.method != method:
            what = _TITLES[self.method]
            if self.method == "eagle3" and self.publisher == "speculators":
                what += " in the layout of speculators"
            if self.publisher == "speculators":
                what += f" ({self.config.get('speculators_model_type')!r:.40})"
            raise CheckpointError(
                f"{self.folder} is {what}, which is not read as {_TITLES[method]}; "
                f"{_ADVICE.get(self.method, _TRAIN)}"
            )


def identify(folder: Path) -> Layout:
    """Return what a folder holds; of its weights, names and shapes are read alone.

    Raises:
        CheckpointError: it has no configuration or no weights, or they cannot be read.
    """
    if (folder / "adapter_config.json").is_file():
        return Layout(folder, {}, {}, "peft")
    if any(folder.glob("medusa_lm_head.*")):
        return Layout(folder, {}, {}, "medusa")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no config.json, so it is no draft head checkpoint")
    config = read_json(path)
    method = _configured(config)
    if method and method != "eagle3":
        return Layout(folder, config, {}, method)
    tensors = _unprefixed(folder, stored_in(folder))
    named = _named(config, tensors)
    if method and named not in _BEYOND:
        named = method
    return Layout(folder, config, tensors, named)


def _configured(config: Mapping[str, Any]) -> str | None:
    """Return what a configuration alone says it is of, if it does."""
    names, kind = _architectures(config), _speculators(config)
    signs = {
        "dspark": kind == "dspark" or "DSpark" in names,
        "dflash": kind == "dflash" or "dflash_config" in config or "DFlash" in names,
        "peagle": kind == "peagle" or "PEagle" in names,
        "speculators": kind not in (None, "eagle3"),
        "medusa": "medusa_num_heads" in config or "Medusa" in names,
        "eagle3": config.get("draft_vocab_size") is not None or kind or "Eagle3" in names,
    }
    return next((method for method, sign in signs.items() if sign), None)


def _architectures(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return " ".join(map(str, architectures)) if isinstance(architectures, list) else ""


def _speculators(config: Mapping[str, Any]) -> str | None:
    """Return the kind of model that speculators calls it, or None where it is not its layout."""
    if kind := config.get("speculators_model_type"):
        return str(kind)
    if "speculators_config" not in config:
        return None
    said = config["speculators_config"]
    return str(said.get("algorithm")) if isinstance(said, dict) else "unknown"


def _named(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> str:
    """Return what the tensors' names and shapes say they are of."""
    size, fc = config.get("hidden_size"), tensors.get("fc.weight")
    wide = (
        fc is not None and len(fc.shape) == 2 and fc.shape[1] == 3 * fc.shape[0] == 3 * (size or 0)
    )
    signs = {
        "dspark": any(name.startswith("markov_head.") for name in tensors),
        "peagle": "mask_hidden" in tensors,
        "eagle3": wide or "d2t" in tensors or any(n.startswith("midlayer.") for n in tensors),
        "dflash": "hidden_norm.weight" in tensors,
        "medusa": "0.0.linear.weight" in tensors,
        "language-model": fc is None
        and {"norm.weight", "layers.0.input_layernorm.weight"} <= tensors.keys(),
    }
    return next((method for method, sign in signs.items() if sign), "eagle")


def _unprefixed(folder: Path, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors without the prefix that they have where a head was saved inside of a model."""
    found: dict[str, Stored] = {}
    for name, one in stored.items():
        short = name.removeprefix(_PREFIX)
        if short in found:
            raise CheckpointError(f"{folder} holds {short} twice, with and without {_PREFIX!r}")
        found[short] = one
    return found
