"""A draft head in a larger shape, as its target is; knows the published checkpoint layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle.bench.placement import Placement
from eagle.bench.shapes import Shape
from eagle.errors import RequestError
from eagle.plugin import EMBEDDING, DraftHead, TargetInfo

__all__ = ["widen_head", "wider_layers"]

_FC, _IDS = "fc.weight", "eagle_aux_hidden_state_layer_ids"
_LAYER = (
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj"
    r"|input_layernorm|post_attention_layernorm{})\.weight"
)
# What a head of each layout must have, and all that it may have.
_LAYOUTS = (
    (
        "layers.0.self_attn.q_proj.weight",
        r"fc\.(weight|bias)|(embedding|hidden_states)_layernorm\.weight|layers\.\d+\."
        + _LAYER.format(""),
    ),
    (
        "midlayer.self_attn.q_proj.weight",
        r"(fc|norm|lm_head|input_norm|fc_norm\.\d+)\.weight|midlayer\."
        + _LAYER.format("|hidden_norm"),
    ),
)
_READERS = ("fc", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
_FC_NORMS = re.compile(r"(input_norm|fc_norm\.\d+)\.weight")


@torch.no_grad()
def widen_head(
    head: DraftHead, target: TargetInfo, shape: Shape, folder: Path, *, seed: int = 1
) -> None:
    """Write the checkpoint of a draft head that is widened as its target is.

    Args:
        head: loaded, of the layout of EAGLE-1 and 2 or of EAGLE-3.
        target: that it was loaded for, in its own shape.
        shape: the target's; where it has experts, the head has one MLP of their size.
        folder: where the wide checkpoint is written, in the same layout and the head's dtype.
        seed: of the weights that have no effect.

    Raises:
        RequestError: the head is of another kind, or has something that cannot be widened.
        TargetError: it does not fit into the shape.
    """
    from transformers import LlamaConfig

    tensors = head.module.state_dict() if hasattr(head, "module") else {}
    _require_layout(head, tensors)
    head.save(folder)  # type: ignore[attr-defined]
    config, weights = folder / "config.json", folder / "model.safetensors"
    values = json.loads(config.read_text())
    beside = {name: tensor for name, tensor in load_file(weights).items() if name not in tensors}
    _require_one_epsilon(values, tensors)
    source = LlamaConfig(**{key: value for key, value in values.items() if key != "model_type"})
    dense = replace(shape, experts=0, experts_per_token=0)
    made = dense.config(source)

    fc = tensors[_FC]
    place = _Places(source, values, dense, torch.Generator(fc.device).manual_seed(seed))
    wide = {name: place.widened(name, tensor).cpu() for name, tensor in tensors.items()}
    if EMBEDDING in beside:  # as it is, where the checkpoint is rounded
        beside[EMBEDDING] = place.embedded(getattr(head, "embedding", None), beside[EMBEDDING])
    changed = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    values |= {key: getattr(made, key) for key in (*changed, "head_dim", "rms_norm_eps")}
    if "target_hidden_size" in values:
        values["target_hidden_size"] = shape.hidden_size
    if _IDS in values:
        layers = wider_layers(values[_IDS], target, shape)
        values[_IDS] = list(layers)
        values["eagle_config"] |= {_IDS: [layer - 1 for layer in layers]}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    save_file(wide | beside, weights)


def wider_layers(layers: Sequence[int], target: TargetInfo, shape: Shape) -> tuple[int, ...]:
    """Return which hidden states of a widened target are some of the target's.

    All keep their numbers but the last, which is behind the final norm, as transformers has it.

    Args:
        layers: indices of the target's `hidden_states`.
        target: the target in its own shape.
        shape: what it is embedded in.
    """
    return tuple(shape.layers if layer == target.layers else layer for layer in layers)


def _require_layout(head: DraftHead, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a head whose function is not known, and name what has no place in a wider one."""
    kind = type(head).__name__
    for needed, known in _LAYOUTS:
        if hasattr(head, "save") and {_FC, needed} <= tensors.keys():
            odd = [name for name in tensors if not re.fullmatch(known, name)]
            if odd:
                raise RequestError(
                    f"--shape cannot widen this {kind}: there is no place in a wider head for its "
                    f"{', '.join(odd)}; measure it at its own shape"
                )
            return
    raise RequestError(
        f"--shape widens heads of the published EAGLE layouts only (EAGLE-1 to 3), which {kind} is "
        "not; measure it at its own shape"
    )


def _require_one_epsilon(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse norms over two sizes: each would have to have its epsilon scaled otherwise."""
    size, theirs = values["hidden_size"], values.get("target_hidden_size")
    norms = [name for name in tensors if _FC_NORMS.fullmatch(name)]
    if norms and theirs not in (None, size):
        raise RequestError(
            f"--shape cannot widen this head: {norms[0]} is over the target's hidden size {theirs} "
            f"and its other norms over {size}, with one rms_norm_eps between them; measure it at "
            "its own shape"
        )


class _Places:
    """Makes the wide weights of a head, one after another.

    Args:
        source: configuration of its layer.
        values: its configuration as it was written.
        shape: sizes of the wide head.
        generator: of weights that have no effect.
    """

    def __init__(
        self, source: Any, values: Mapping[str, Any], shape: Shape, generator: torch.Generator
    ) -> None:
        self._place = Placement(source, shape, generator)
        self._size, self._stream = source.hidden_size, shape.hidden_size
        self._joined = values.get("target_hidden_size") or source.hidden_size
        keys = shape.kv_heads * shape.head_dim
        self._rows = {
            "q_proj": shape.heads * shape.head_dim,
            "k_proj": keys,
            "v_proj": keys,
            "gate_proj": shape.intermediate_size,
            "up_proj": shape.intermediate_size,
        }
        self._columns = {
            "o_proj": shape.heads * shape.head_dim,
            "down_proj": shape.intermediate_size,
        }

    def widened(self, name: str, source: Tensor) -> Tensor:
        """Return the wide tensor of a name in the head's network."""
        if name == "fc.bias":
            return self._padded(source)
        part = re.sub(r"\.\d+$", "", name.removesuffix(".weight")).split(".")[-1]
        if source.dim() == 1:
            count = source.numel() // (self._joined if _FC_NORMS.fullmatch(name) else self._size)
            return self._in_blocks(source.new_empty(count * self._stream), source, count, "norm")
        rows = source.shape[0] if part == "lm_head" else self._rows.get(part, self._stream)
        # Of inputs side by side each has columns of its own.
        read = self._joined if part == "fc" else self._size
        count = source.shape[1] // read if part in _READERS else 1
        wide = source.new_empty(rows, self._columns.get(part, count * self._stream))
        return self._in_blocks(wide, source, count, part)

    def _in_blocks(self, wide: Tensor, source: Tensor, count: int, part: str) -> Tensor:
        made: Callable[[Tensor, Tensor], None]
        made = {
            "norm": self._place.norm,
            "fc": self._place.fusion,
            "lm_head": self._place.readout,
        }.get(part) or self._place.parts[part]
        for block, given in zip(wide.chunk(count, -1), source.chunk(count, -1), strict=True):
            made(block, given)
        return wide

    def embedded(self, own: Tensor | None, written: Tensor) -> Tensor:
        """Return the wide embedding of a head that has one of its own."""
        return self._padded(written if own is None else own).cpu()

    def _padded(self, source: Tensor) -> Tensor:
        wide = source.new_zeros(*source.shape[:-1], self._stream)
        wide[..., : self._size] = source
        return wide
