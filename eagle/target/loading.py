"""From what a user writes for a target to its files, configuration, weights and tokenizer.

Knows transformers' loaders and what they cannot serve; knows nothing of decoding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eagle.assets import gguf_options
from eagle.errors import TargetError, clipped, reason
from eagle.host import expanded, is_there, without_bars
from eagle.plugin import TargetInfo, rotary_depends_on_length
from eagle.spec import TargetSpec
from eagle.target import adapters, formats, quantizing
from eagle.target.sizes import check_files, check_sizes, whole

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
    "width_of",
]

_LONGEST_ID = 200  # of a Hub id, with room to spare
_MODELS = "target.model is the embedded 'smollm2-135m-instruct', a folder, a GGUF file or a Hub id"
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")
_SHOWN = 3  # keys that a message names
# What files have that no pass over text multiplies by: tables and masks that models make for
# themselves, scales of a cache of eight bits, other modalities, and layers that draft.
_NO_WEIGHT = re.compile(
    r"inv_freq$|position_ids$|masked_bias$|attn\.bias$|attention\.bias$|_extra_state$|[kv]_scale$"
    r"|(^|\.)(mtp|vision|visual|audio|speech|image|embed_vision|embed_audio|multi_modal|mm)\w*\."
)


@dataclass(frozen=True)
class Source:
    """Where a target's files are: arguments of every `from_pretrained`.

    Attributes:
        name: as the spec has it.
        path: a folder, or a Hub id.
        options: further arguments.
        cached: whether the folder is in this package's cache, and made anew where it is missing.
        adapter: the folder of an adapter that goes onto it, if one does.
    """

    name: str
    path: str
    options: dict[str, Any]
    cached: bool = False
    adapter: Path | None = None


def locate(spec: TargetSpec, folder: Path | None = None) -> Source:
    """Resolve an embedded model, a folder, a GGUF file or a Hub id, and an adapter's folder.

    A folder that holds an adapter and no model stands for the model that it was made for, with
    the adapter.

    Args:
        spec: the target.
        folder: of the spec file; a relative path is looked for there, then where the user stands.

    Raises:
        TargetError: a path that does not exist.
        AssetError: the embedded model is not in the cache and cannot be fetched.
    """
    adapter = _adapter(spec, folder)
    if adapter is not None:
        own = spec.model_copy(update={"adapter": None})
        if spec.adapter is None:
            own = own.model_copy(update={"model": _base(adapter)})
        try:
            return replace(_locate(own, folder), name=spec.model, adapter=adapter)
        except TargetError as error:
            if spec.adapter is not None:
                raise
            raise TargetError(
                f"target.model: {adapter} is an adapter for {own.model!r}, which is not there "
                f"({error}); give its model as target.model, and the adapter as target.adapter"
            ) from error
    return _locate(spec, folder)


def _adapter(spec: TargetSpec, folder: Path | None) -> Path | None:
    """Return the folder of a spec's adapter, or None where it has none."""
    given = spec.adapter or spec.model
    path = expanded(given)
    beside = (folder or Path()) / path
    path = beside if is_there(beside) else path
    if spec.adapter is None:
        return path if is_there(path) and path.is_dir() and adapters.is_adapter(path) else None
    if not is_there(path) or not path.is_dir():
        raise TargetError(
            f"target.adapter: there is no folder {clipped(str(path))}; give the folder of a PEFT "
            "adapter"
        )
    adapters.base_of(path)
    return path


def _base(adapter: Path) -> str:
    """Return what an adapter's base is, a path that starts at the adapter's folder if it is one."""
    base = adapters.base_of(adapter)
    beside = adapter / base
    return str(beside) if is_there(beside) else base


def _locate(spec: TargetSpec, folder: Path | None) -> Source:
    from eagle import assets

    # Said to every loader, since transformers asks on standard input where nothing is said.
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    asset = assets.ASSETS.get(spec.model)
    if asset is not None and asset.kind == "model":
        return Source(spec.model, str(assets.model_folder(spec.model)), options, cached=True)
    path = expanded(spec.model)
    beside = (folder or Path()) / path
    path = beside if is_there(beside) else path
    if not is_there(path) and len(spec.model) > _LONGEST_ID:
        raise TargetError(
            f"target.model: {clipped(spec.model)!r} is too long for a path or a Hub id"
        )
    if path.suffix == ".gguf":
        if not path.is_file():
            raise TargetError(f"target.model: there is no file {path}")
        return Source(spec.model, str(path.parent), options | {"gguf_file": path.name})
    if path.is_dir():
        return Source(spec.model, str(path), options)
    if path.exists():
        raise TargetError(f"target.model: {path} is a file; give a .gguf file or a model's folder")
    if spec.model.startswith((".", "/", "~")) or spec.model.count("/") > 1:
        raise TargetError(f"target.model: there is no folder {path}")
    if spec.revision:
        options["revision"] = spec.revision
    return Source(spec.model, spec.model, options)


def folder_of(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model's files, or None where they are not on this machine.

    Args:
        path: a folder, or a Hub id of which at least the configuration was fetched.
        revision: of a Hub id.
    """
    from huggingface_hub import try_to_load_from_cache

    if not path or Path(path).is_dir():
        return Path(path) if path else None
    try:
        found = try_to_load_from_cache(path, "config.json", revision=revision)
    except ValueError:  # it is no Hub id: the name of a model made in memory, say
        return None
    return Path(found).parent if isinstance(found, str) else None


def describe(source: Source) -> tuple[TargetInfo, Any]:
    """Read a target's configuration, without its weights, and refuse what cannot be served.

    Raises:
        TargetError: it cannot be read, or `refuse` refuses it.
    """
    from transformers import AutoConfig, PreTrainedConfig

    try:
        raw, _ = PreTrainedConfig.get_config_dict(source.path, **source.options)
        check_sizes(raw, source.name)
        config = AutoConfig.from_pretrained(source.path, **source.options)
    except TargetError:
        raise
    except Exception as error:  # transformers raises many kinds here, all meaning the same
        raise TargetError(
            f"the target {source.name!r} cannot be read: {_reason(error)}"
            + ("" if _is_distrusted(error) else f" ({_MODELS})")
        ) from error
    refuse(source.name, config)
    text = config.get_text_config()
    info = info_of(source.name, text)
    check_files(Path(source.path), text, source.name)
    return info, text


def info_of(name: str, text: Any) -> TargetInfo:
    """Return the sizes of a text configuration.

    Raises:
        TargetError: one is not there, or is no size.
    """
    return TargetInfo(
        name=name,
        hidden_size=whole(text, "hidden_size", name),
        vocab_size=whole(text, "vocab_size", name),
        layers=whole(text, "num_hidden_layers", name),
        max_positions=whole(text, "max_position_embeddings", name),
    )


def refuse(name: str, config: Any) -> None:
    """Refuse, by its configuration, a model whose output would not be kept.

    Raises:
        TargetError: with the reason.
    """
    text = config.get_text_config()

    def no(reason: str) -> TargetError:
        return TargetError(f"the target {name!r} ({config.model_type}) cannot be served: {reason}")

    if config.is_encoder_decoder:
        raise no("it is an encoder-decoder; only decoder-only causal language models are")
    kinds = set(getattr(text, "layer_types", None) or ()) - set(_ATTENTION_LAYERS)
    if kinds:
        raise no(
            f"it has layers of the kind {', '.join(sorted(map(str, kinds)))}, which cannot be "
            "shown a token tree here; full_attention and sliding_attention can"
        )
    for key in ("num_attention_heads", "max_position_embeddings"):
        try:
            getattr(text, key)
        except AttributeError:
            raise no("it is not built of attention layers with rotary positions") from None
        except RuntimeError:
            pass  # one for each layer: the model is asked
    if kind := rotary_depends_on_length(text):
        raise no(
            f"its rotary embedding ({kind}) changes with the text's length, so cached keys would "
            "not be those of a single pass"
        )


def processes() -> int:
    """Return how many processes `torchrun` or `accelerate launch` started this one among."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_split(name: str, text: Any) -> None:
    """Refuse to cut a target over the processes there are, by its configuration.

    Args:
        name: of the target.
        text: its text configuration.

    Raises:
        TargetError: there is one process alone, or heads would be cut in two.
    """
    count, heads = processes(), text.num_attention_heads
    if count == 1:
        raise TargetError(
            "target.tp_plan needs one process for each device; start it with torchrun "
            "--nproc-per-node N, or let one process spread the target with target.device_map: auto"
        )
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % count or kv_heads % count:
        fits = [str(n) for n in range(2, heads + 1) if heads % n == kv_heads % n == 0]
        raise TargetError(
            f"target.tp_plan: the {heads} attention heads ({kv_heads} of keys and values) of "
            f"{name!r} cannot be shared out among {count} processes; "
            + (f"{' or '.join(fits)} processes can have them" if fits else "use target.device_map")
        )


def is_spread(model: Any) -> bool:
    """Return whether a model's layers are on several devices, offloaded, or cut over processes."""
    placed = getattr(model, "hf_device_map", None) or {}
    several = len(set(placed.values())) > 1 or "disk" in placed.values()
    return several or is_cut(model)


def is_cut(model: Any) -> bool:
    """Return whether a model's layers are cut over processes."""
    return (getattr(model, "_tp_size", None) or 1) > 1


def device_of(layer: Any) -> torch.device:
    """Return where a layer computes, which need not be where its weight is kept."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if device is None:  # by any of its tensors: a packed weight has other names
        tensors = (*layer.parameters(), *layer.buffers())
        found: torch.device = tensors[0].device
        return found
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def width_of(head: Any) -> int:
    """Return how many logits an LM head gives, however its weight is kept."""
    found: int = getattr(head, "out_features", None) or head.weight.shape[0]
    return found


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
    from transformers import AutoConfig, AutoModelForCausalLM

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
        with without_bars(*formats.BARS.get(method, ()), gguf="gguf_file" in options):
            model, report = AutoModelForCausalLM.from_pretrained(
                source.path, dtype=dtype, output_loading_info=True, **options
            )
            formats.settle(model, spread=is_spread(model))
    except Exception as error:
        why = formats.lacking(method) or _reason(error)
        raise TargetError(
            f"the target {source.name!r} cannot be loaded: {why}"
            + (f"; delete {source.path}, and it is made again" if source.cached else "")
        ) from error
    _check_report(source.name, report)
    if source.adapter is not None:
        model = adapters.apply(model, source.adapter, source.path)
        if quantize is not None:
            quantizing.quantize(model, quantize)
    return model.eval().requires_grad_(False)


def _check_report(name: str, report: dict[str, Any]) -> None:
    """Refuse a model that is not wholly what its files hold.

    Raises:
        TargetError: with the first few weights that are not.
    """
    unexpected = [key for key in report["unexpected_keys"] if not _NO_WEIGHT.search(key)]
    misshapen = [str(key[0]) for key in report["mismatched_keys"]]
    for what, keys in (
        ("lack", report["missing_keys"]),
        ("have in another shape", misshapen),
        ("have, and the model has no place for,", unexpected),
    ):
        if keys:
            raise TargetError(
                f"the target {name!r} cannot be served: its files {what} {_few(keys)}, so it would "
                "run with numbers that are not its own"
            )


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
        raise TargetError(
            f"the tokenizer of {source.name!r} cannot be loaded: {_reason(error)}"
        ) from error


def _is_distrusted(error: Exception) -> bool:
    return "trust_remote_code" in str(error)


def _reason(error: Exception) -> str:
    """Return what a loader of transformers says, and in our words where it will not run code."""
    if _is_distrusted(error):
        return (
            "it comes with Python code of its own, which is run only if target.trust_remote_code "
            "is true; set that if you trust whoever wrote it"
        )
    return reason(error)
