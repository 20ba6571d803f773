"""From a target's spec to the target: found, described, measured against the memory, and loaded.

Knows the order of these steps; knows nothing of passes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from eagle.host import versions
from eagle.spec import TargetSpec
from eagle.target import loading, quantizing
from eagle.target.causal_lm import Target
from eagle.target.memory import check_memory
from eagle.target.placement import resolve_device, resolve_dtype
from eagle.target.together import Together

__all__ = ["load_target", "meet"]

log = logging.getLogger("eagle.target")


def load_target(
    spec: TargetSpec, folder: Path | None = None, quantize: quantizing.Quantize | None = None
) -> Target:
    """Load the target of a spec, on its device or devices and in its dtype.

    Args:
        spec: the target.
        folder: of the spec file, where a relative path is looked for first.
        quantize: what its linear layers become, if they are to be quantized.

    Raises:
        TargetError: it cannot be found, loaded or served.
        AssetError: the embedded model is not in the cache and cannot be fetched.
    """
    source = loading.locate(spec, folder)
    device = resolve_device(spec.device)
    _, text = loading.describe(source)
    meet(spec, text, source.name)
    dtype = resolve_dtype(spec.dtype, device)
    if spec.device_map is None:
        check_memory(
            loading.folder_of(source.path, spec.revision),
            text,
            source.name,
            dtype=dtype,
            device=device,
            kind=None if source.adapter else quantize,
            processes=loading.processes() if spec.tp_plan else 1,
            gguf=source.options.get("gguf_file"),
        )
    model = loading.load_model(source, dtype, device, spec, quantize)
    if spec.dtype != "auto" and model.dtype != dtype:
        log.warning(
            "target.dtype: %s is not what %s is loaded in: a checkpoint quantized like this "
            "one keeps the dtype that it was saved in, %s",
            spec.dtype,
            source.name,
            str(model.dtype).removeprefix("torch."),
        )
    target = Target(model, loading.load_tokenizer(source), spec.model)
    target.cut_draft = spec.cut_draft
    return target


def meet(spec: TargetSpec, text: Any, name: str) -> Together | None:
    """Meet the processes that are to hold a target, before any of its weights are there.

    Args:
        spec: the target's.
        text: its text configuration.
        name: what it is called.

    Returns:
        None where this process holds it by itself, or all were brought together to train.

    Raises:
        TargetError: they do not come, were given other things, or its heads cannot be shared out.
    """
    if not spec.tp_plan:
        return None
    loading.check_split(name, text)
    if not torch.distributed.is_initialized():  # not to train
        together = Together.join()
        together.agree("target", spec.model_dump(mode="json"))
        together.agree("version", versions())
    return Together.joined()
