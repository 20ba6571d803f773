"""Checkpoints that come quantized: which package a format needs, and what loading leaves to do.

Knows formats by the names that transformers has for them, and what their files hold; how a
quantized weight multiplies is its package's business.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch

from eagle.errors import TargetError, reason

__all__ = ["BARS", "Stored", "lacking", "loaded_bytes", "method_of", "settings_of", "settle"]

BARS = {
    "compressed-tensors": (
        "compressed_tensors.compressors.model_compressors.model_compressor",
        "compressed_tensors.quantization.lifecycle.apply",
    )
}
"""Modules that draw progress bars of their own while a format is loaded."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}
# What is of no use once a weight of compressed-tensors is a plain one.
_COMPANION = re.compile(r"weight_(shape|scale|zero_point|global_scale|g_idx)$")
_PACKED = 2  # numbers of four bits in a byte, where a file does not say how many there are


@dataclass(frozen=True)
class _Format:
    """What a format is loaded with: modules, and how they are installed."""

    modules: tuple[str, ...]
    how: str


_EXTRA = "install this package with its extra {!r}"
_FORMATS = {
    "torchao": _Format(("torchao",), _EXTRA.format("quantize")),
    "bitsandbytes": _Format(("bitsandbytes",), _EXTRA.format("bitsandbytes")),
    "compressed-tensors": _Format(("compressed_tensors",), _EXTRA.format("compressed-tensors")),
    # No extra: gptqmodel asks for versions of PyTorch and numpy of its own.
    "gptq": _Format(("optimum", "gptqmodel"), "install gptqmodel and optimum beside this package"),
    "awq": _Format(("gptqmodel",), "install gptqmodel beside this package"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of a file has it.

    Attributes:
        name: its name.
        dtype: safetensors' name of its dtype.
        shape: its shape.
        whole: the shape of the weight that it is packed from, where the file says so.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    whole: tuple[int, ...] | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether its numbers are plain ones, of sixteen bits or more."""
        return self.dtype in _FLOATS

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        return self.numbers * _BYTES.get(self.dtype, 1)


def settings_of(config: Any) -> Mapping[str, Any]:
    """Return what quantizes a checkpoint, empty where nothing does.

    Args:
        config: the target's whole configuration, or the folder of its files.
    """
    if isinstance(config, Path):
        try:
            raw = json.loads((config / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        found = raw.get("quantization_config") if isinstance(raw, dict) else None
    else:
        found = getattr(config, "quantization_config", None)
        found = found if found is None or isinstance(found, dict) else found.to_dict()
    return found if isinstance(found, dict) else {}


def method_of(settings: Mapping[str, Any]) -> str:
    """Return transformers' name of what quantizes a checkpoint, empty where nothing does."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"  # whatever else is said
    method = settings.get("quant_method")
    return str(getattr(method, "value", method) or "")


def lacking(method: str) -> str | None:
    """Return what is missing to load a format, and how it is installed; None where nothing is."""
    form = _FORMATS.get(method)
    if form is None:
        return None
    for module in form.modules:
        try:
            import_module(module)
        except Exception as error:  # a package may fail in as many ways as there are
            absent = isinstance(error, ModuleNotFoundError) and error.name == module
            why = "is not installed" if absent else f"cannot be imported ({reason(error)})"
            return (
                f"it is quantized with {method}, which needs {module.replace('_', '-')}, and that "
                f"{why}; {form.how}"
            )
    return None


def loaded_bytes(tensor: Stored, settings: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Return the bytes that a tensor of a quantized checkpoint takes once it is loaded.

    Args:
        tensor: as it is stored.
        settings: of `settings_of`.
        dtype: that plain numbers are asked for in.
    """
    method, size = method_of(settings), dtype.itemsize
    if method == "bitsandbytes":  # loaded by an operation that casts nothing
        return tensor.bytes
    if method in ("gptq", "awq") and tensor.name.endswith(".scales"):
        return tensor.bytes
    if method == "compressed-tensors" and not settings.get("use_optimized_inference"):
        # Its own forward turns weights into plain ones when it is first called.
        if tensor.name.endswith("weight_packed"):
            return size * (prod(tensor.whole) if tensor.whole else _PACKED * tensor.bytes)
        if tensor.name.endswith("weight"):
            return size * tensor.numbers
        if _COMPANION.search(tensor.name) and not _quantizes_activations(settings):
            return 0
    return size * tensor.numbers if tensor.is_float else tensor.bytes


def _quantizes_activations(settings: Mapping[str, Any]) -> bool:
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, dict) else ()
    kinds = ("input_activations", "output_activations")
    return any(isinstance(one, dict) and any(one.get(kind) for kind in kinds) for one in found)


def settle(model: Any, *, spread: bool = False) -> None:
    """Do what a quantized model's own forward would do first, since passes do not go through it.

    Weights of compressed-tensors become plain ones. Layers that quantize nothing else are
    ordinary layers from then on; what quantizes activations stays as it is.

    Args:
        model: as transformers has loaded it.
        spread: whether it is on several devices.

    Raises:
        TargetError: what is spread cannot be unpacked.
    """
    if method_of(settings_of(model.config)) == "bitsandbytes":
        logging.getLogger(_TALKER).addFilter(_ONCE)
    if getattr(model, "ct_decompress_hook", None) is None:
        return
    if spread:  # its package would take the place of what hooks the layers
        raise TargetError(
            "weights of compressed-tensors are unpacked on one device; leave out target.device_map "
            "and target.tp_plan"
        )
    from compressed_tensors.compressors import decompress_module

    # Layer by layer, since for a whole model it also puts hooks of its own on what stays on one
    # device.
    for layer in model.modules():
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is None:
            continue
        decompress_module(layer)
        if not scheme.input_activations and not scheme.output_activations:
            vars(layer).pop("forward", None)
            for name, _ in list(layer.named_parameters(recurse=False)):
                if name.startswith("weight_"):
                    delattr(layer, name)
    model.hf_quantizer.compressor.remove_decompression_hook(model)


class _Once(logging.Filter):
    """Lets each message of a logger through once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record says something new."""
        text = record.getMessage()
        new = text not in self._said
        self._said.add(text)
        return new


# It says of every product that its input is rounded to float16.
_TALKER, _ONCE = "bitsandbytes.autograd._functions", _Once()
