"""Adapters of PEFT: which base one was made for, and a target with one in its weights.

Knows the files of an adapter and peft's calls; knows nothing of how a target is decoded.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from eagle.errors import TargetError, clipped, reason
from eagle.target.quantizing import is_plain

__all__ = ["apply", "base_of", "is_adapter"]

log = logging.getLogger("eagle.target")

_CONFIG = "adapter_config.json"
_SHOWN = 3  # weights that a message names


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / _CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """Return the model that an adapter was made for, as its files name it.

    Raises:
        TargetError: its configuration is not there, is damaged or names none.
    """
    base = _settings(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise TargetError(
            f"target.model: the adapter {folder} does not say which model it was made for "
            f"(base_model_name_or_path in {_CONFIG}); give that as target.model, and the adapter "
            "as target.adapter"
        )
    return base


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TargetError(
            f"target.adapter: {folder} holds no {_CONFIG}; give the folder of a PEFT adapter"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise TargetError(f"target.adapter: {path} cannot be read: {reason(error)}") from error
    if not isinstance(found, dict):
        raise TargetError(f"target.adapter: {path} should hold a mapping")
    return found


def apply(model: Any, folder: Path, name: str) -> Any:
    """Return a model with an adapter merged into its weights.

    Where these are quantized, so that nothing can be added to them, the adapter's layers stay
    beside them instead.

    Args:
        model: the base, whole, on its device.
        folder: of the adapter.
        name: of the base, for messages.

    Raises:
        TargetError: peft is not there, or the adapter is damaged, changes no weights, or is one of
            another model.
    """
    base = _settings(folder).get("base_model_name_or_path")
    if isinstance(base, str) and base and Path(base).name != Path(name).name:
        log.warning(
            "the adapter %s was made for %s, and is applied to %s",
            folder,
            clipped(base),
            clipped(name),
        )
    try:
        import peft
    except ImportError as error:
        raise TargetError(
            f"the adapter {folder} needs peft, which is not installed; install this package with "
            "its extra 'peft'"
        ) from error
    with warnings.catch_warnings():
        # What peft reads of transformers that is to go; and what is missing is an error here.
        warnings.simplefilter("ignore")
        return _applied(peft, model, folder, name)


def _applied(peft: Any, model: Any, folder: Path, name: str) -> Any:
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise TargetError(
                f"the adapter {folder} is of the kind {config.peft_type.value}, which puts "
                "entries in front of every text and changes no weight; LoRA and its like are served"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise TargetError(
                f"the adapter {folder} is an activated LoRA, which applies from a token of the "
                "text on and cannot be merged into the weights; LoRA and its like are served"
            )
        config.inference_mode = True
        whole = peft.PeftModel(model, config)
        kept = _unsaved(peft, whole)
        weights = peft.load_peft_weights(str(folder), device=str(model.device))
        found = peft.set_peft_model_state_dict(whole, weights)
    except TargetError:
        raise
    except Exception as error:  # of as many kinds as there are adapters
        raise _misfit(folder, name, reason(error)) from error
    lacking = [key for key in found.missing_keys if key not in kept]
    for what, keys in (("lacks", lacking), ("has no place for", found.unexpected_keys)):
        if keys:
            few = ", ".join(sorted(keys)[:_SHOWN])
            raise _misfit(folder, name, f"it {what} {few} and others ({len(keys)} in all)")
    if getattr(config, "layer_replication", None):
        _share_config(model)
    if not is_plain(model):
        return whole.get_base_model()
    if _part(whole):
        model.config.get_text_config().tie_word_embeddings = False
    try:
        return whole.merge_and_unload()
    except Exception as error:  # of as many kinds as there are adapters
        raise _misfit(folder, name, reason(error)) from error


def _unsaved(peft: Any, whole: Any) -> set[str]:
    """Return the weights that no file of this adapter has, whole as it may be.

    What peft works out itself (AdaLoRA's ranks, say) is not saved, and what several layers share
    (VeRA's projections, tokens of an embedding with an LM head tied to it) is saved once.
    """
    saved = peft.get_peft_model_state_dict(whole, save_embedding_layers=False)
    return set(peft.set_peft_model_state_dict(whole, saved).missing_keys)


def _share_config(model: Any) -> None:
    """Give layers that peft copied the model's configuration, which says what computes them."""
    for config in (model.config, model.config.get_text_config()):
        for module in model.modules():
            if type(vars(module).get("config")) is type(config):
                module.config = config


def _part(whole: Any) -> bool:
    """Part weights that an adapter changes from others that share their memory.

    Merging adds to them in place, which would change an LM head with the embedding tied to it, and
    layers that are there twice.

    Returns:
        Whether there were any.
    """
    shared: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, weight in whole.named_parameters(remove_duplicate=False):
        shared.setdefault(weight.data_ptr(), []).append((name, weight))
    parted = False
    for group in shared.values():
        if len(group) == 1 or not any(".base_layer." in name for name, _ in group):
            continue
        for name, weight in group[1:]:
            place, _, leaf = name.rpartition(".")
            own = nn.Parameter(weight.detach().clone(), requires_grad=False)
            setattr(whole.get_submodule(place), leaf, own)
            parted = True
    return parted


def _misfit(folder: Path, name: str, why: str) -> TargetError:
    return TargetError(
        f"the adapter {folder} does not fit the target {clipped(name)!r}: {why}; it has to be one "
        "that was made for this model"
    )
