"""From what a user writes for a target to its files, configuration, weights and tokenizer.

Knows transformers' loaders and what they cannot serve; knows nothing of decoding.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle.assets import gguf_options
from eagle.errors import TargetError
from eagle.quiet import without_bars
from eagle.roles import TargetInfo
from eagle.schema import TargetSpec

__all__ = [
    "Source",
    "check_split",
    "describe",
    "device_of",
    "folder_of",
    "is_spread",
    "load_model",
    "load_tokenizer",
    "locate",
    "processes",
    "refuse",
    "rotary_depends_on_length",
    "window",
]

# Their rotary frequencies depend on the length of the text so far, hence on how it was cached.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Source:
    """Where a target's files are: arguments of every `from_pretrained`.

    Attributes:
        name: as the spec has it.
        path: a folder, or a Hub id.
        options: further arguments.
        cached: whether the folder is in this package's cache, and made anew where it is missing.
    """

    name: str
    path: str
    options: dict[str, Any]
    cached: bool = False


def locate(spec: TargetSpec, folder: Path | None = None) -> Source:
    """Resolve an embedded model, a folder, a GGUF file or a Hub id.

    Args:
        spec: the target.
        folder: of the spec file; a relative path is looked for there, then where the user stands.

    Raises:
        TargetError: a path that does not exist.
        AssetError: the embedded model is not in the cache and cannot be fetched.
    """
    from eagle import assets

    asset = assets.ASSETS.get(spec.model)
    if asset is not None and asset.kind == "model":
        return Source(spec.model, str(assets.model_folder(spec.model)), {}, cached=True)
    path = Path(spec.model).expanduser()
    beside = (folder or Path()) / path
    path = beside if beside.exists() else path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise TargetError(f"target.model: there is no file {path}")
        return Source(spec.model, str(path.parent), {"gguf_file": path.name})
    if path.is_dir():
        return Source(spec.model, str(path), {})
    if path.exists():
        raise TargetError(f"target.model: {path} is a file; give a .gguf file or a model's folder")
    if spec.model.startswith((".", "/", "~")) or spec.model.count("/") > 1:
        raise TargetError(f"target.model: there is no folder {path}")
    return Source(spec.model, spec.model, {"revision": spec.revision} if spec.revision else {})


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
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.path, **source.options)
    except Exception as error:  # transformers raises many kinds here, all meaning the same
        raise TargetError(
            f"the target {source.name!r} cannot be read: {_first_line(error)} (target.model is "
            "the embedded 'smollm2-135m-instruct', a folder, a GGUF file or a Hub id)"
        ) from error
    refuse(source.name, config)
    text = config.get_text_config()
    info = TargetInfo(
        name=source.name,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        layers=text.num_hidden_layers,
        max_positions=text.max_position_embeddings,
    )
    return info, text


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
            f"it has layers of the kind {', '.join(sorted(kinds))}, whose state cannot hold a "
            "token tree; only attention over all earlier tokens can"
        )
    if not hasattr(text, "num_attention_heads") or not hasattr(text, "max_position_embeddings"):
        raise no("it is not built of attention layers with rotary positions")
    if getattr(text, "attn_logit_softcapping", None):
        raise no("it caps attention scores, which no attention backend here does")
    if kind := rotary_depends_on_length(text):
        raise no(
            f"its rotary embedding ({kind}) changes with the text's length, so cached keys would "
            "not be those of a single pass"
        )


def rotary_depends_on_length(config: Any) -> str | None:
    """Return the kind of a rotary embedding whose frequencies follow the text's length, or None."""
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            return str(parameters["rope_type"])
    return None


def window(text: Any) -> int | None:
    """Return the sliding window of a text configuration, or None if no layer has one."""
    size = getattr(text, "sliding_window", None)
    if size is None or size <= 0 or getattr(text, "use_sliding_window", True) is False:
        return None
    kinds = getattr(text, "layer_types", None)
    return None if kinds and "sliding_attention" not in kinds else int(size)


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
    return several or (getattr(model, "_tp_size", None) or 1) > 1


def device_of(layer: Any) -> torch.device:
    """Return where a layer computes, which need not be where its weight is kept."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    if device is None:
        weight: torch.Tensor = layer.weight
        return weight.device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def load_model(
    source: Source, dtype: torch.dtype, device: torch.device, spec: TargetSpec | None = None
) -> Any:
    """Load a target's weights, frozen, in evaluation mode.

    Args:
        source: where they are.
        dtype: theirs.
        device: where they go, unless the spec spreads them.
        spec: whose `device_map` or `tp_plan` spreads them over devices, if it has one.

    Raises:
        TargetError: it is no causal language model, its files are damaged, or it cannot be
            spread like that.
    """
    from transformers import AutoModelForCausalLM

    options = dict(source.options)
    spread = spec is not None and spec.spread
    if spec is not None and spec.device_map is not None:
        options["device_map"] = spec.device_map
    elif spec is not None and spec.tp_plan is not None:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(tp_size=processes())
    if "gguf_file" in options:
        options |= gguf_options()
    try:
        with without_bars(gguf="gguf_file" in options):
            model = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype, **options)
    except Exception as error:
        raise TargetError(
            f"the target {source.name!r} cannot be loaded: {_first_line(error)}"
            + (f"; delete {source.path}, and it is made again" if source.cached else "")
        ) from error
    model = model if spread else model.to(device)
    return model.eval().requires_grad_(False)


def load_tokenizer(source: Source) -> Any:
    """Load a target's tokenizer, or return None for a folder without one (tokens only, then)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, **source.options)
    except Exception as error:
        if Path(source.path).is_dir() and not list(Path(source.path).glob("token*")):
            return None
        raise TargetError(
            f"the tokenizer of {source.name!r} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
