"""A target's configuration: its sizes, and what is refused before any weight is loaded.

Knows what transformers says of a model; knows no family by name, and not where files come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagle.errors import TargetError
from eagle.plugin import TargetInfo, rotary_depends_on_length
from eagle.target.faults import check_named, explained, is_distrusted, unread, untold
from eagle.target.locating import Source
from eagle.target.placement import processes
from eagle.target.sizes import check_files, check_sizes, whole

__all__ = ["check_split", "describe", "info_of", "refuse"]

_MODELS = "target.model is the embedded 'smollm2-135m-instruct', a folder, a GGUF file or a Hub id"
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")


def describe(source: Source) -> tuple[TargetInfo, Any]:
    """Read a target's configuration, without its weights, and refuse what cannot be served.

    Raises:
        TargetError: it cannot be read, or `refuse` refuses it.
    """
    from transformers import AutoConfig, PreTrainedConfig

    folder, raw = Path(source.path), None
    if "gguf_file" not in source.options and (wrong := unread(folder, "config.json")):
        raise TargetError(f"the target {source.name!r} cannot be read: its {wrong}")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source.path, **source.options)
        check_sizes(raw, source.name)
        config = AutoConfig.from_pretrained(source.path, **source.options)
    except TargetError:
        raise
    except Exception as error:  # transformers raises many kinds here, all meaning the same
        raise TargetError(
            f"the target {source.name!r} cannot be read: {explained(error, raw)}"
            + ("" if raw is not None or is_distrusted(error) else f" ({_MODELS})")
        ) from error
    refuse(source.name, config)
    text = config.get_text_config()
    info = info_of(source.name, text)
    check_named(text, source.name)
    check_files(folder, text, source.name, untold(raw, config))
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
