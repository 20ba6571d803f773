"""The sizes and constants of a draft head's network, as its configuration gives them.

Reads the keys that matter and no other, each within bounds: what a file asks for is known before
anything is built. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from eagle.plugin import CheckpointError, explain, rotary_depends_on_length

__all__ = ["Architecture", "llama_config"]

_QUERY, _OUTPUT = (f"layers.0.self_attn.{name}_proj.bias" for name in "qo")
_KINDS = ("default", "linear", "llama3", "yarn")
_FOLLOWING = ("dynamic", "longrope")  # the text's length: refused with the reason
_ROPE = (
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor",
    "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor",
)  # fmt: skip

Rope = dict[str, str | bool | FiniteFloat | list[FiniteFloat] | None]
Heads = Annotated[int, Field(ge=1, le=2**12)]
Token = Annotated[int, Field(ge=-(2**31), lt=2**31)]


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
    rope_theta: Annotated[FiniteFloat, Field(gt=0, le=1e15)] | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    attention_bias: bool | None = None
    qkv_bias: bool | None = None
    bos_token_id: Token | list[Token] | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | list[Token] | None = None
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
    if rotary_depends_on_length(config):
        raise CheckpointError(
            f"{path}: its rotary embedding changes with the text's length, so its cached keys "
            "would not be those of a single pass"
        )
    _check_rotary(config, path)
    return config


def _checked(values: Mapping[str, Any], path: Path) -> Architecture:
    """Return the keys that matter, each of a value that can be built."""
    given = _known(values, Architecture.model_fields)
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(given.get(key), dict):
            given[key] = _known(given[key], _ROPE)
    try:
        read = Architecture.model_validate(given)
    except ValidationError as error:
        found = explain(error, Architecture, given).items()
        wrong = [f"{'.'.join(map(str, key))} {text.rstrip('.')}" for key, text in found]
        raise CheckpointError(f"{path}: {'; '.join(wrong)}") from error
    heads, groups = read.num_attention_heads, read.num_key_value_heads
    rope = read.rope_parameters or read.rope_scaling or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    problem = None
    if read.hidden_act not in ("silu", "swish"):
        problem = f"hidden_act {read.hidden_act!r:.40} is not that of a Llama layer, 'silu'"
    elif groups and heads % groups:
        problem = f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
    elif kind not in (*_KINDS, *_FOLLOWING):
        problem = (
            f"the rotary embedding's type {kind!r:.40} is unknown; it should be one of "
            f"{', '.join(_KINDS)}"
        )
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return read


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
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is no Llama configuration: {reason:.300}") from error


def _check_rotary(config: Any, path: Path) -> None:
    """Refuse rotary positions that do not turn whole heads."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    size = config.head_dim
    try:
        turned = LlamaRotaryEmbedding(config).inv_freq
        fits = 2 * turned.numel() == size and bool(turned.isfinite().all())
    except Exception as error:  # a parameter that is missing, zero or of another type
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: no rotary embedding: {reason:.200}") from error
    if not fits:
        raise CheckpointError(
            f"{path}: its rotary embedding does not turn the {size} numbers of an attention head"
        )
