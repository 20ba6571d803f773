"""A target's weights and tokenizer, from files that were located; knows nothing of decoding.

Knows transformers' loaders. The steps before and what they tell are given here too, so that who
loads needs this module alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eagle.assets import gguf_options
from eagle.errors import TargetError
from eagle.host import without_bars
from eagle.spec import TargetSpec
from eagle.target import adapters, formats, quantizing
from eagle.target.describing import check_split, describe, info_of, refuse
from eagle.target.faults import explained, unread, untold, without_report
from eagle.target.locating import Source, folder_of, locate
from eagle.target.placement import device_of, is_cut, is_spread, processes

__all__ = [
    "Source",
    "check_split",
    "describe",
    "device_of",
    "folder_of",
    "info_of",
    "is_cut",
    "is_spread",
    "load_model",
    "load_tokenizer",
    "locate",
    "processes",
    "refuse",
]

_SHOWN = 3  # keys that a message names
# What files have that no pass over text multiplies by: tables and masks that models make for
# themselves, scales of a cache of eight bits, other modalities, and layers that draft.
_NO_WEIGHT = re.compile(
    r"inv_freq$|position_ids$|masked_bias$|attn\.bias$|attention\.bias$|_extra_state$|[kv]_scale$"
    r"|(^|\.)(mtp|vision|visual|audio|speech|image|embed_vision|embed_audio|multi_modal|mm)\w*\."
)


def load_model(
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    spec: TargetSpec | None = None,
    quantize: quantizing.Quantize | None = None,
) -> Any:
    """Load a target's weights, frozen, in evaluation mode.

    Args:
        source: where they are.
        dtype: theirs.
        device: where they go, unless the spec spreads them.
        spec: whose `device_map` or `tp_plan` spreads them over devices, if it has one.
        quantize: what linear layers become, if they are to be quantized.

    Raises:
        TargetError: it is no causal language model, its files are damaged, its adapter is not one
            of its own, or it cannot be spread or quantized like that.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

    # Each weight goes to its device as it is read: no second copy of all lies in the host's memory.
    options = {"device_map": {"": str(device)}} | source.options
    at_once = quantize if source.adapter is None else None  # what is quantized is not added to
    if spec is not None and spec.device_map is not None:
        options["device_map"] = spec.device_map
    elif spec is not None and spec.tp_plan is not None:
        from transformers.distributed import DistributedConfig

        del options["device_map"]
        options["distributed_config"] = DistributedConfig(tp_size=processes())
    if quantize is not None:
        if "gguf_file" in options:
            raise TargetError(
                f"runtime.quantize: {quantize} is for plain checkpoints, and a GGUF file is "
                "dequantized when it is read; leave it out"
            )
        config = AutoConfig.from_pretrained(source.path, **source.options)
        given = quantizing.options(quantize, config, dtype, device)
        options |= given if at_once else {}
    method = ""
    if "gguf_file" in options:
        options |= gguf_options()
    else:
        folder = folder_of(source.path, source.options.get("revision"))
        method = formats.method_of(formats.settings_of(folder)) if folder else ""
    try:
        bars = without_bars(*formats.BARS.get(method, ()), gguf="gguf_file" in options)
        with bars, without_report():
            model, report = AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below, with the others that do not fit
                **options,
            )
            formats.settle(model, spread=is_spread(model))
    except Exception as error:
        wrong = unread(Path(source.path), "generation_config.json")
        why = formats.lacking(method) or (f"its {wrong}" if wrong else explained(error))
        raise TargetError(
            f"the target {source.name!r} cannot be loaded: {why}"
            + (f"; delete {source.path}, and it is made again" if source.cached else "")
        ) from error
    if wrong := _unfit(report):
        raw, _ = PreTrainedConfig.get_config_dict(source.path, **source.options)
        raise TargetError(
            f"the target {source.name!r} cannot be served: its files {wrong}, so it would "
            f"run with numbers that are not its own{untold(raw, model.config)}"
        )
    if source.adapter is not None:
        model = adapters.apply(model, source.adapter, source.path)
        if quantize is not None:
            quantizing.quantize(model, quantize)
    else:
        quantizing.rearrange(model)
    return model.eval().requires_grad_(False)


def _unfit(report: dict[str, Any]) -> str:
    """Return the first few weights that are not wholly what the files hold; nothing for none."""
    unexpected = [key for key in report["unexpected_keys"] if not _NO_WEIGHT.search(key)]
    misshapen = [
        f"{key} ({list(held)}, where its configuration asks for {list(asked)})"
        for key, held, asked in report["mismatched_keys"]
    ]
    for what, keys in (
        ("lack", report["missing_keys"]),
        ("have in another shape", misshapen),
        ("have, and the model has no place for,", unexpected),
    ):
        if keys:
            return f"{what} {_few(keys)}"
    return ""


def _few(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def load_tokenizer(source: Source) -> Any:
    """Load a target's tokenizer, or return None for a folder without one (tokens only, then)."""
    from transformers import AutoTokenizer

    if source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file():
        source = replace(source, path=str(source.adapter))  # trained with the adapter
    try:
        return AutoTokenizer.from_pretrained(source.path, **source.options)
    except Exception as error:
        if Path(source.path).is_dir() and not list(Path(source.path).glob("token*")):
            return None
        wrong = unread(Path(source.path))
        raise TargetError(
            f"the tokenizer of {source.name!r} cannot be loaded: "
            + (f"its {wrong}" if wrong else explained(error))
        ) from error
