"""The sizes and constants of a draft head's network, as its configuration gives them.

Reads the keys that matter and no other, each within bounds: what a file asks for is known before
anything is built. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from eagle.errors import nearest, reason
from eagle.plugin import CheckpointError, explain

__all__ = ["Architecture", "llama_config"]

_QUERY, _OUTPUT = (f"layers.0.self_attn.{name}_proj.bias" for name in "qo")
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""By the kind of a rotary embedding, what it cannot be without."""
_FOLLOWING = ("dynamic", "longrope")  # the text's length: refused with the reason
_ROTARY = ("rope_scaling", "rope_parameters")  # the older name, which goes before the newer one

Heads = Annotated[int, Field(ge=1, le=2**12)]
Token = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Theta = Annotated[FiniteFloat, Field(gt=0, le=1e15)]
Factor = Annotated[FiniteFloat, Field(gt=0, le=1e15)]


class Rotary(BaseModel):
    """How far positions turn queries and keys; keys as transformers has them.

    Attributes:
        rope_type: its kind; `type` is the older name of it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    factor: Factor | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1, le=2**31)] | Factor | None = None
    attention_factor: Factor | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    mscale: FiniteFloat | None = None
    mscale_all_dim: FiniteFloat | None = None
    truncate: bool | None = None
    partial_rotary_factor: Factor | None = None

    @property
    def kind(self) -> str:
        """Its kind, as transformers reads it."""
        return self.rope_type or self.type or "default"


class Architecture(BaseModel):
    """A decoder layer of the Llama family, or a few, behind an FC; keys as Llama has them.

    Attributes:
        attention_bias: of the projections of queries, keys, values and the output.
        qkv_bias: of the first three alone, as the published heads for Qwen2 have them.
        draft_kind: what goes into the FC, where that is not EAGLE's; see `EagleHead.kind`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, protected_namespaces=())

    hidden_size: Annotated[int, Field(ge=1, le=2**17)]
    intermediate_size: Annotated[int, Field(ge=1, le=2**20)]
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Annotated[int, Field(ge=2, le=2**12, multiple_of=2)] | None = None
    vocab_size: Annotated[int, Field(ge=1, le=2**26)]
    num_hidden_layers: Annotated[int, Field(ge=1, le=16)] = 1
    hidden_act: str = "silu"
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**31)] = 2048
    rope_theta: Theta | None = None
    rope_scaling: Rotary | None = None
    rope_parameters: Rotary | None = None
    attention_bias: bool | None = None
    qkv_bias: bool | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | None = None
    draft_kind: Annotated[str, Field(max_length=64)] | None = None


def llama_config(values: Mapping[str, Any], path: Path, names: Container[str] = ()) -> Any:
    """Return a head's configuration as a `transformers.LlamaConfig`.

    Args:
        values: what the file says.
        path: the file, for messages.
        names: of its weights, which say what biases there are where the file does not.

    Raises:
        CheckpointError: a needed key is missing, a value is out of bounds, or the network cannot
            be built or cached.
    """
    read = _checked(values, path)
    biased = {
        "attention_bias": _given(read.attention_bias, _OUTPUT in names),
        "qkv_bias": _given(read.qkv_bias, _QUERY in names),
    }
    config = _built(read.model_copy(update=biased), path)
    _check_rotary(config, path)
    return config


def _checked(values: Mapping[str, Any], path: Path) -> Architecture:
    """Return the keys that matter, each of a value that can be built."""
    given = _known(values, Architecture.model_fields)
    for key in _ROTARY:
        if isinstance(given.get(key), dict):
            given[key] = _known(given[key], Rotary.model_fields)
    try:
        read = Architecture.model_validate(given)
    except ValidationError as error:
        found = explain(error, Architecture, given).items()
        wrong = [f"{'.'.join(map(str, key))} {text.rstrip('.')}" for key, text in found]
        raise CheckpointError(f"{path}: {'; '.join(wrong)}") from error
    if problem := _problem(read):
        raise CheckpointError(f"{path}: {problem}")
    return read


def _problem(read: Architecture) -> str:
    """Return what is wrong with values that are right by themselves; nothing if nothing is."""
    hidden, heads, groups = read.hidden_size, read.num_attention_heads, read.num_key_value_heads
    if read.hidden_act not in ("silu", "swish"):
        return f"hidden_act {read.hidden_act!r:.40} is not that of a Llama layer, 'silu'"
    if hidden % heads:
        return (
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, as it is in "
            "every Llama layer"
        )
    if read.head_dim is None and hidden // heads % 2:
        return (
            f"hidden_size {hidden} and num_attention_heads {heads} make heads of {hidden // heads} "
            "numbers, which do not turn in pairs; give the size of a head, an even number, as "
            "head_dim"
        )
    if groups and heads % groups:
        return f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
    for key in _ROTARY:
        rotary: Rotary | None = getattr(read, key)
        if rotary is not None and (wrong := _unturned(rotary, key)):
            return wrong
    return ""


def _unturned(rotary: Rotary, key: str) -> str:
    """Return why positions cannot be turned by these settings; nothing if they can."""
    if rotary.kind in _FOLLOWING:
        return (
            f"its rotary embedding changes with the text's length ({key}: {rotary.kind}), so its "
            "cached keys would not be those of a single pass"
        )
    if rotary.kind not in _NEEDED:
        return (
            f"{key}: the rotary embedding's type {rotary.kind!r:.40} is unknown; it should be one "
            f"of {', '.join(_NEEDED)}.{nearest(rotary.kind, _NEEDED)}"
        )
    lacking = [one for one in _NEEDED[rotary.kind] if getattr(rotary, one) is None]
    if lacking:
        return (
            f"{key} has no {' and no '.join(lacking)}, which a rotary embedding of the type "
            f"{rotary.kind!r} needs"
        )
    return ""


def _known(values: Mapping[str, Any], keys: Container[str]) -> dict[str, Any]:
    """Return the keys that are read; null is as good as absent, as in transformers."""
    return {k: v for k, v in values.items() if k in keys and v is not None}


def _given(said: bool | None, found: bool) -> bool:
    return found if said is None else said


def _built(read: Architecture, path: Path) -> Any:
    from transformers import LlamaConfig

    try:
        return LlamaConfig(**read.model_dump(exclude_none=True))
    except Exception as error:  # transformers' validators raise kinds of their own
        raise CheckpointError(f"{path} is no Llama configuration: {reason(error)}") from error


def _check_rotary(config: Any, path: Path) -> None:
    """Refuse rotary positions that do not turn whole heads."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    size = config.head_dim
    try:
        turned = LlamaRotaryEmbedding(config).inv_freq
        fits, finite = 2 * turned.numel() == size, bool(turned.isfinite().all())
    except Exception as error:  # what its settings say together
        raise CheckpointError(f"{path}: no rotary embedding: {reason(error, 200)}") from error
    if not fits:
        raise CheckpointError(
            f"{path}: its rotary embedding does not turn the {size} numbers of an attention head"
        )
    if not finite:
        raise CheckpointError(
            f"{path}: its rotary embedding turns by numbers that are not finite; see what it has "
            f"as {' or '.join(_ROTARY)}"
        )
