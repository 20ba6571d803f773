"""What exactly a block drafter is, by its folder: layers, block, mask token, who sees whom.

Each publisher's layout is read as that publisher means it, and what is unknown is refused by name.
Knows configurations and names of tensors, no weight. Sources: z-lab/dflash ``dflash/model.py``;
hao-ai-lab/JetSpec ``jetspec/models/draft_head.py``; vllm-project/speculators
``src/speculators/models/dflash`` and ``src/speculators/convert/dflash/converter.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.plugin import CheckpointError, HeadFiles, TargetInfo, llama_config, saved_config

__all__ = [
    "VERIFIERS",
    "BlockVariant",
    "layers_config",
    "method_of",
    "read_block_variant",
    "spread_layers",
    "whole_number",
    "written_config",
]

_DFLASH = (
    "target_layer_ids", "mask_token_id", "block_size", "causal_head", "target_hidden_size",
    "sample_from_anchor",
)  # fmt: skip
VERIFIERS = ("verifier_lm_head.weight", "verifier_norm.weight")
"""Of the target, in folders of speculators: for training alone."""

_OTHERS = {
    "dspark": "a DSpark draft model, whose Markov and confidence heads are not read",
    "mtp": "a module of multi-token prediction, which drafts one level after the other",
    "eagle3": "a draft head of EAGLE-3: use it with head.name=eagle3",
}


@dataclass(frozen=True)
class BlockVariant:
    """A block drafter, before any weight is read.

    Attributes:
        config: of its layers, a `transformers.LlamaConfig`; they have Qwen3's norms beside.
        layers: hidden states that it sees, as indices of transformers' `hidden_states`.
        levels: the deepest level that it was trained for.
        mask: token that stands for what is not known yet.
        causal: whether an entry of a block sees those before it alone, or the whole block.
        anchored: whether the root's entry predicts the first level, and each one the token behind
            its own; or else each mask's entry predicts its own token, and the root's none.
        vocab: Vd of an LM head of its own, or None for the target's.
        target_layers: decoder layers of the target it was made for, where it says so.
        publisher: whose layout it is.
    """

    config: Any
    layers: tuple[int, ...]
    levels: int
    mask: int
    causal: bool
    anchored: bool
    vocab: int | None = None
    target_layers: int | None = None
    publisher: str = "z-lab"

    def __str__(self) -> str:
        sight = "causal" if self.causal else "seen both ways"
        own = "" if self.vocab is None else f", an LM head of its own for {self.vocab:,} tokens"
        count = self.config.num_hidden_layers
        return (
            f"{count} layer{'s' * (count > 1)} over hidden states "
            f"{', '.join(map(str, self.layers))}, blocks of {self.levels} levels {sight}{own}"
        )


def spread_layers(target_layers: int, draft_layers: int) -> tuple[int, ...]:
    """Return the hidden states that z-lab's code takes where a configuration names none.

    Its ``build_target_layer_ids`` counts layers whose output is taken: the hidden state one on. Of
    targets with so few layers that it has no meaning, all.
    """
    if target_layers < 6:
        return tuple(range(1, target_layers + 1))
    if draft_layers == 1:
        return (target_layers // 2 + 1,)
    span = target_layers - 4
    return tuple(round(1 + i * span / (draft_layers - 1)) + 1 for i in range(draft_layers))


def read_block_variant(files: HeadFiles) -> BlockVariant:
    """Return what a folder's drafter is.

    Raises:
        CheckpointError: it is another method's, its files contradict themselves, or they ask for
            what is not served.
    """
    kind = method_of(files)
    if kind in _OTHERS:
        raise CheckpointError(f"{files.folder} is {_OTHERS[kind]}")
    if kind != "dflash":
        raise CheckpointError(
            f"{files.folder} is no block drafter: config.json has neither a dflash_config, as "
            "z-lab and JetSpec write it, nor a speculators_model_type of 'dflash'"
        )
    if "speculators_model_type" in files.config or "speculators_config" in files.config:
        return _speculators(files)
    return _zlab(files)


def method_of(files: HeadFiles) -> str | None:
    """Return the method that a folder is of, by its configuration and its tensors' names."""
    names, said = files.tensors, files.config.get("speculators_model_type")
    nested = files.config.get("speculators_config")
    if said is None and isinstance(nested, Mapping):
        said = nested.get("algorithm")
    architectures = str(files.config.get("architectures"))
    dspark = any(name.startswith(("markov_head.", "confidence_head.")) for name in names)
    if dspark or "DSpark" in architectures:
        return "dspark"
    if "mask_hidden" in names:
        return "peagle"
    if said is not None:
        return str(said)
    return "dflash" if "dflash_config" in files.config else None


def _zlab(files: HeadFiles) -> BlockVariant:
    path = files.folder / "config.json"
    said = files.config["dflash_config"]
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{path}: dflash_config should be a mapping")
    if odd := [key for key in said if key not in _DFLASH]:
        raise CheckpointError(
            f"{path}: dflash_config has {odd[0]!r:.40}, which is not known; known: "
            f"{', '.join(_DFLASH)}"
        )
    config = layers_config(files, files.config, path)
    if said.get("target_hidden_size") not in (None, config.hidden_size):
        raise CheckpointError(
            f"{path}: target_hidden_size is {said['target_hidden_size']!r:.20}, not the drafter's "
            f"own {config.hidden_size}; an adapter between them is not read"
        )
    # At the top in older files, inside in newer ones.
    size = whole_number(path, files.config if "block_size" in files.config else said, "block_size")
    count = None
    if files.config.get("num_target_layers") is not None:
        count = whole_number(path, files.config, "num_target_layers")
    if said.get("target_layer_ids") is not None:
        # The ids are of layers whose output is taken, which is the hidden state one further.
        layers = tuple(one + 1 for one in _ids(path, said, "target_layer_ids"))
    elif count is not None:
        layers = spread_layers(count, config.num_hidden_layers)
    else:
        raise CheckpointError(f"{path}: neither target_layer_ids nor num_target_layers is given")
    return BlockVariant(
        config=config,
        layers=layers,
        levels=_levels(path, size, anchored=False),
        mask=whole_number(path, said, "mask_token_id", least=0),
        causal=_flag(path, said, "causal_head"),
        anchored=_flag(path, said, "sample_from_anchor"),
        target_layers=count,
        publisher="JetSpec" if said.get("causal_head") else "z-lab",
    )


def _speculators(files: HeadFiles) -> BlockVariant:
    path, said = files.folder / "config.json", files.config
    inner = said.get("transformer_layer_config")
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{path}: transformer_layer_config should be a mapping")
    config = layers_config(files, inner, path)
    if said.get("target_hidden_size") not in (None, config.hidden_size):
        raise CheckpointError(f"{path}: target_hidden_size should be {config.hidden_size}")
    anchored = _flag(path, said, "sample_from_anchor")
    return BlockVariant(
        config=config,
        # Already indices of hidden_states: the converter adds one to z-lab's.
        layers=_ids(path, said, "aux_hidden_state_layer_ids"),
        levels=_levels(path, whole_number(path, said, "block_size"), anchored=anchored),
        mask=whole_number(path, said, "mask_token_id", least=0),
        causal=False,
        anchored=anchored,
        vocab=whole_number(path, said, "draft_vocab_size"),
        publisher="speculators",
    )


def _levels(path: Path, size: int, *, anchored: bool) -> int:
    """Return the levels of a block: its mask tokens, and the root where that predicts too."""
    levels = size if anchored else size - 1
    if levels < 1:
        raise CheckpointError(f"{path}: block_size is {size}; a block has a root and a mask token")
    return levels


def layers_config(files: HeadFiles, values: Mapping[str, Any], path: Path) -> Any:
    """Return the configuration of a drafter's layers, all of which see the whole text.

    Raises:
        CheckpointError: one does not, or a value is out of bounds.
    """
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds):
        odd = next(kind for kind in kinds if kind != "full_attention")
        raise CheckpointError(
            f"{path}: a layer has {odd!r:.40}; drafters whose layers see the whole text are read"
        )
    return llama_config(values, path, files.tensors)


def whole_number(path: Path, where: Mapping[str, Any], key: str, least: int = 1) -> int:
    """Return a number that a configuration must give.

    Raises:
        CheckpointError: it is lacking, or something else.
    """
    said = where.get(key)
    if type(said) is not int or not least <= said < 2**31:
        raise CheckpointError(f"{path}: {key} should be a whole number of at least {least}")
    return said


def _ids(path: Path, where: Mapping[str, Any], key: str) -> tuple[int, ...]:
    said = where.get(key)
    if not isinstance(said, list) or not said or any(type(one) is not int for one in said):
        raise CheckpointError(f"{path}: {key} should be a list of layers' numbers")
    return tuple(said)


def _flag(path: Path, where: Mapping[str, Any], key: str) -> bool:
    said = where.get(key)
    if said is not None and not isinstance(said, bool):
        raise CheckpointError(f"{path}: {key} should be true or false")
    return bool(said)


def written_config(variant: BlockVariant, target: TargetInfo) -> dict[str, Any]:
    """Return the configuration of a drafter as JetSpec and z-lab have it."""
    said = {
        "target_layer_ids": [layer - 1 for layer in variant.layers],
        "mask_token_id": variant.mask,
        "causal_head": variant.causal,
    }
    if variant.anchored:  # others' code knows no such key, and would read it otherwise
        said["sample_from_anchor"] = True
    return saved_config(variant.config) | {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": variant.config.num_hidden_layers,
        "num_target_layers": target.layers,
        "block_size": variant.levels + 1,
        "dflash_config": said,
        "tie_word_embeddings": True,
    }
