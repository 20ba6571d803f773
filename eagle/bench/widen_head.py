"""A draft head in a larger shape, as its target is; knows the published checkpoint layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from eagle.bench.placement import Placement
from eagle.bench.shapes import Shape
from eagle.bench.widen import fill_layer
from eagle.errors import RequestError
from eagle.plugin import DraftHead

__all__ = ["widen_head"]

_FC, _BIAS, _LAYER = "fc.weight", "fc.bias", "layers.0."


@torch.no_grad()
def widen_head(head: DraftHead, shape: Shape, folder: Path, *, seed: int = 1) -> None:
    """Write the checkpoint of a draft head that is widened as its target is.

    Args:
        head: loaded, and of the published EAGLE layout: an FC and one Llama layer.
        shape: the target's; where it has experts, the head has one MLP of their size.
        folder: where the wide checkpoint is written, in the same layout and the head's dtype.
        seed: of the weights that have no effect.

    Raises:
        RequestError: the head is of another kind.
        TargetError: it does not fit into the shape.
    """
    from transformers import LlamaConfig

    sizes = _layer_sizes(shape)
    names = {_FC, *(_LAYER + name for name in sizes)}
    tensors = head.module.state_dict() if hasattr(head, "module") else {}
    if not hasattr(head, "save") or set(tensors) - {_BIAS} != names:
        raise RequestError(
            f"--shape widens heads of the published EAGLE layout only, which {type(head).__name__} "
            "is not; measure it at its own shape"
        )
    head.save(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    source = LlamaConfig(**{key: value for key, value in values.items() if key != "model_type"})
    dense = replace(shape, experts=0, experts_per_token=0)
    config = dense.config(source)

    fc = tensors[_FC]
    place = Placement(source, dense, torch.Generator(fc.device).manual_seed(seed))
    layer = {name: fc.new_empty(size) for name, size in sizes.items()}
    given = {name.removeprefix(_LAYER): tensor for name, tensor in tensors.items()}
    fill_layer(layer, given, place)
    wide = {_LAYER + name: weight for name, weight in layer.items()}
    wide[_FC] = fc.new_empty(shape.hidden_size, 2 * shape.hidden_size)
    place.fusion(wide[_FC], fc)
    if _BIAS in tensors:
        wide[_BIAS] = fc.new_zeros(shape.hidden_size)
        wide[_BIAS][: source.hidden_size] = tensors[_BIAS]
    changed = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    values |= {key: getattr(config, key) for key in (*changed, "head_dim", "rms_norm_eps")}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    save_file({name: t.cpu() for name, t in wide.items()}, folder / "model.safetensors")


def _layer_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a head's layer: a Llama layer without the norm before its attention."""
    stream, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "self_attn.q_proj.weight": (queries, stream),
        "self_attn.k_proj.weight": (keys, stream),
        "self_attn.v_proj.weight": (keys, stream),
        "self_attn.o_proj.weight": (stream, queries),
        "mlp.gate_proj.weight": (inner, stream),
        "mlp.up_proj.weight": (inner, stream),
        "mlp.down_proj.weight": (stream, inner),
        "post_attention_layernorm.weight": (stream,),
    }
