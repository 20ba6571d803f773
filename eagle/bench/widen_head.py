"""A draft head in a larger shape, as its target is; knows the published checkpoint layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle.bench.places import FC_NORMS, Places, wider_layers
from eagle.bench.shapes import Shape
from eagle.bench.widen_parallel import BLOCK, MEDUSA, NormedPlaces, in_shape, widened_medusa
from eagle.errors import RequestError
from eagle.plugin import EMBEDDING, DraftHead, TargetInfo

__all__ = ["widen_head"]

_FC, _IDS, _BLOCK = "fc.weight", "eagle_aux_hidden_state_layer_ids", "dflash_config"
_LAYER = (
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj"
    r"|input_layernorm|post_attention_layernorm{})\.weight"
)
# What a head of each layout must have, and all that it may have.
_LAYOUTS = (
    ("hidden_norm.weight", BLOCK),
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


@torch.no_grad()
def widen_head(
    head: DraftHead, target: TargetInfo, shape: Shape, folder: Path, *, seed: int = 1
) -> None:
    """Write the checkpoint of a draft head that is widened as its target is.

    Args:
        head: loaded, of the layout of EAGLE-1 and 2, of EAGLE-3, of Medusa, or of a block drafter.
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
    medusa = bool(tensors) and all(MEDUSA.fullmatch(name) for name in tensors)
    if not medusa:
        _require_layout(head, tensors)
    head.save(folder)  # type: ignore[attr-defined]
    config, (weights,) = folder / "config.json", folder.glob("*.safetensors")
    values = json.loads(config.read_text())
    dense = replace(shape, experts=0, experts_per_token=0)
    generator = torch.Generator(next(iter(tensors.values())).device).manual_seed(seed)
    if medusa:
        one = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": dense.head_dim}
        source = LlamaConfig(hidden_size=values["hidden_size"], **one)  # it has no attention
        wide = widened_medusa(tensors, Places(source, values, dense, generator))
        values["hidden_size"] = shape.hidden_size
        del values["base_model_name_or_path"]  # it is not the one that it was trained for
    else:
        wide = _widened(head, values, tensors, load_file(weights), target, dense, generator)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    save_file({name: tensor.cpu() for name, tensor in wide.items()}, weights)


def _widened(
    head: DraftHead,
    values: dict[str, Any],
    tensors: Mapping[str, Tensor],
    written: Mapping[str, Tensor],
    target: TargetInfo,
    shape: Shape,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the wide tensors of a head with decoder layers; its configuration is changed."""
    from transformers import LlamaConfig

    _require_one_epsilon(values, tensors)
    source = LlamaConfig(**{key: value for key, value in values.items() if key != "model_type"})
    made = shape.config(source)
    place = (NormedPlaces if _BLOCK in values else Places)(source, values, shape, generator)
    wide = {name: place.widened(name, tensor) for name, tensor in tensors.items()}
    beside = {name: tensor for name, tensor in written.items() if name not in tensors}
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
    if _BLOCK in values:
        values |= {
            _BLOCK: in_shape(values[_BLOCK], target, shape),
            "num_target_layers": shape.layers,
        }
    return wide | beside


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
        "--shape widens heads of the published layouts of EAGLE (1 to 3), Medusa and DFlash only, "
        f"of which {kind} is none; measure it at its own shape"
    )


def _require_one_epsilon(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse norms over two sizes: each would have to have its epsilon scaled otherwise."""
    size, theirs = values["hidden_size"], values.get("target_hidden_size")
    norms = [name for name in tensors if FC_NORMS.fullmatch(name)]
    if norms and theirs not in (None, size):
        raise RequestError(
            f"--shape cannot widen this head: {norms[0]} is over the target's hidden size {theirs} "
            f"and its other norms over {size}, with one rms_norm_eps between them; measure it at "
            "its own shape"
        )
