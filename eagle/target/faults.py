"""What is wrong with a target's files, in one sentence, where transformers says it its own way.

Knows the files of a folder and the names of a few settings; loads nothing, and knows no family.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eagle.errors import TargetError, brief, clipped, nearest, reason

__all__ = ["check_named", "explained", "is_distrusted", "unread", "untold", "without_report"]

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# What huggingface_hub's checked dataclasses say of a value, and which types they name there.
_MISTYPED = re.compile(
    r"Field '(\w+)' (?:with value .* doesn't match any type in \((.*?)\)\. Errors:"
    r"|expected (\w+|an? \w+), got )"
)
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "dict": "settings by name",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
}
_FAMILYS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def unread(folder: Path, *names: str) -> str:
    """Return which of a folder's files is no JSON of settings by name, and why; else nothing.

    Args:
        folder: of a target, which may be no folder here.
        *names: of files that may be there; by default those of a tokenizer.
    """
    for name in names or _TOKENIZER:
        try:
            raw = json.loads((folder / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or reason(error)}"
        except (ValueError, RecursionError) as error:
            return f"{name} is no JSON: {reason(error)}"
        if not isinstance(raw, dict):
            return f"{name} holds {_shown(raw)}, where settings by name should be"
    return ""


def untold(raw: Mapping[str, Any], config: Any) -> str:
    """Return, to end a sentence, which sizes a file leaves to its family; nothing for none.

    Args:
        raw: the configuration as its file has it.
        config: what transformers made of it.
    """
    own = getattr(config, "attribute_map", {})  # a family's names of what has a common one
    left = [key for key in _FAMILYS if key not in raw and own.get(key) not in raw]
    if not left or config.get_text_config() is not config:
        return ""
    taken = ", ".join(f"{key} {getattr(config, key, None)}" for key in left)
    return f"; config.json does not say {' and '.join(left)}, so its family's is taken: {taken}"


def check_named(text: Any, name: str) -> None:
    """Refuse names in a configuration that transformers would look up, and not find.

    Args:
        text: the text configuration.
        name: of the target.

    Raises:
        TargetError: with the key, the name, and the nearest that there is.
    """
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    named = [(key, getattr(text, key, None), ACT2FN) for key in _ACTIVATIONS]
    rotary = getattr(text, "rope_parameters", None)
    if isinstance(rotary, dict):
        kinds = ["default", *ROPE_INIT_FUNCTIONS]
        each = [one for one in (rotary, *rotary.values()) if isinstance(one, dict)]
        named += [("rope_type", one.get("rope_type"), kinds) for one in each]
    for key, value, known in named:
        if isinstance(value, str) and value not in known:
            raise TargetError(
                f"the target {name!r} cannot be served: its configuration has {key}: "
                f"{clipped(value)!r}, which transformers does not know.{nearest(value, known)}"
            )


def is_distrusted(error: Exception) -> bool:
    """Return whether a loader of transformers failed since it may not run a model's own code."""
    return "trust_remote_code" in str(error)


def explained(error: Exception, raw: Mapping[str, Any] | None = None) -> str:
    """Return what a loader of transformers says, in our words where its own explain nothing.

    Args:
        error: what it raised.
        raw: the configuration as its file has it, if it could be read.
    """
    if is_distrusted(error):
        return (
            "it comes with Python code of its own, which is run only if target.trust_remote_code "
            "is true; set that if you trust whoever wrote it"
        )
    said = reason(error)
    unknown = said.startswith(("Unrecognized model", "The checkpoint you are trying"))
    if raw is not None and (unknown or not isinstance(raw.get("model_type", ""), str)):
        return f"config.json has {_kind(raw)}"
    if raw is not None and (mistyped := _mistyped(str(error), raw)):
        return f"config.json has {mistyped}"
    if said.startswith("Unrecognized configuration class"):
        made = re.search(r"(\w+)'>", said)  # the class, by which a family can be told
        kind = f"a {made[1]}" if made else "its configuration"
        return f"{kind} is of no causal language model that transformers knows"
    if said.startswith("Couldn't instantiate the backend tokenizer"):
        return "there is no tokenizer.json, nor another file that one can be made of"
    if type(error).__name__ == "SafetensorError":
        return f"a .safetensors file of it is damaged or cut off ({said})"
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError):
        return f"transformers can make nothing of what its files say ({said})"
    return said


def _kind(raw: Mapping[str, Any]) -> str:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = raw.get("model_type")
    if kind is None:
        return "no model_type, which is the name of a family of models, as llama"
    close = nearest(str(kind), CONFIG_MAPPING_NAMES)
    return f"model_type: {brief(kind)}, which the installed transformers does not know.{close}"


def _mistyped(said: str, raw: Mapping[str, Any]) -> str:
    """Return which key has a value of a wrong type, and what should be there; nothing for none."""
    found = _MISTYPED.search(" ".join(said.split()))
    if found is None:
        return ""
    key, alternatives, one = found.groups()
    texts = (text for text in (raw, raw.get("text_config")) if isinstance(text, Mapping))
    values = [text[key] for text in texts if key in text]
    types = re.findall(r"\w+", re.sub(r"\[.*?\]+", "", alternatives or one))
    wanted = list(dict.fromkeys(_TYPES[kind] for kind in types if kind in _TYPES))
    if not values or not wanted:
        return ""
    meant = [value for value in values if re.search(rf"value:? {re.escape(repr(value))}\W", said)]
    value = (meant or values)[0]
    return f"{key}: {_shown(value)}, where {' or '.join(wanted)} should be"


def _shown(value: Any) -> str:
    return "null" if value is None else brief(value)


@contextmanager
def without_report() -> Iterator[None]:
    """Keep transformers' table of weights that do not fit from the log: who loads says it."""

    def wanted(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "LOAD REPORT" not in said or "CONVERSION" in said  # whose error names none

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(wanted)
    try:
        yield
    finally:
        log.removeFilter(wanted)
