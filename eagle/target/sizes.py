"""What a target's configuration may ask for, looked at before anything is made of it.

A file of a few bytes can ask for a list of 10**9 layers or a table of 10**12 numbers, and would get
it as soon as transformers builds the configuration. Knows names of sizes, a family's own too; knows
no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eagle.errors import TargetError

__all__ = ["check_files", "check_sizes", "whole"]

# Ten times and more what any published model has, by what the names of sizes have in common.
_LARGEST = (
    (re.compile(r"layers?$|layer_num|depth$"), 4096),
    (re.compile(r"heads?$|_kv$|groups?$"), 2**16),
    (re.compile(r"experts?$"), 2**16),
    (re.compile(r"labels?$"), 2**20),
    (re.compile(r"position|ctx|seq"), 2**27),
    (re.compile(r"vocab"), 2**26),
    (re.compile(r"size|dim|rank|embd|inner|model$|width|window|state"), 2**24),
)
# What has to be there at least once, where it is one number for all layers.
_COUNTED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings")  # fmt: skip
# Of these, what every family has, some by a name of their own.
_EVERYWHERE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
               "max_position_embeddings")  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.bin")
_BITS = 8  # numbers that a byte of a file may hold, at most


def check_sizes(raw: Mapping[str, Any], name: str) -> None:
    """Refuse a configuration that asks for absurd sizes.

    Args:
        raw: the configuration as its file has it.
        name: of the target.

    Raises:
        TargetError: with the key and the number.
    """
    for text in (raw, raw.get("text_config")):
        if not isinstance(text, Mapping):
            continue
        counted = {*_COUNTED, *_own_names(text)}
        for key, value in text.items():
            if key in counted and isinstance(value, bool | int | float | str):
                _check_whole(value, key, name)
    for key, value in _numbers(raw, depth=8):
        if abs(value) <= 2**12:
            continue
        largest = next((most for kind, most in _LARGEST if kind.search(key)), None)
        if largest is not None and not abs(value) <= largest:  # a NaN neither
            raise TargetError(
                f"the target {name!r} cannot be served: its configuration has {key}: {value:g}, "
                f"and no model has more than {largest}"
            )


def _own_names(text: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a configuration's family calls the sizes that every family has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = text.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        own = CONFIG_MAPPING[kind].attribute_map
        yield from (own[key] for key in _EVERYWHERE if key in own)


def _numbers(raw: Mapping[str, Any], depth: int) -> Iterator[tuple[str, int | float]]:
    for key, value in raw.items():
        if isinstance(value, Mapping) and depth:
            yield from _numbers(value, depth - 1)
        elif isinstance(value, int | float):
            yield str(key), value


def check_files(folder: Path, text: Any, name: str, told: str = "") -> None:
    """Refuse a configuration that asks for many more numbers than its files can hold.

    Args:
        folder: of the target, which may be no folder here.
        text: its text configuration.
        name: of the target.
        told: what ends the sentence.

    Raises:
        TargetError: with both numbers.
    """
    held = sum(path.stat().st_size for kind in _WEIGHTS for path in folder.glob(kind))
    hidden = text.hidden_size
    least = text.vocab_size * hidden + text.num_hidden_layers * hidden * hidden // 4
    if held and least > _BITS * held:
        raise TargetError(
            f"the target {name!r} cannot be served: its configuration asks for {least:.2g} numbers "
            f"and more, and its files hold {held:.2g} bytes{told}"
        )


def whole(text: Any, key: str, name: str) -> int:
    """Return a size of a configuration.

    Raises:
        TargetError: it is not there, differs from layer to layer, or is no whole number above 0.
    """
    try:
        value = getattr(text, key)
    except AttributeError:
        raise TargetError(
            f"the target {name!r} cannot be served: its configuration has no {key}"
        ) from None
    except RuntimeError as error:  # transformers', of configurations that have one for each layer
        raise TargetError(
            f"the target {name!r} cannot be served: its layers have a {key} each, and the cache "
            "keeps all layers in one shape"
        ) from error
    return _check_whole(value, key, name)


def _check_whole(value: Any, key: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TargetError(
            f"the target {name!r} cannot be served: its configuration's {key} should be a whole "
            f"number above 0, not {value!r:.40}"
        )
    return value
