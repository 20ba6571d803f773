"""A Llama model in a larger shape: the same function, at that shape's cost.

Knows transformers models; measures nothing. What it makes is always called what it is: the
source's function at the shape, never the shape's own model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eagle.bench.placement import Placement
from eagle.bench.shapes import Shape
from eagle.errors import TargetError
from eagle.host import free_memory
from eagle.target import Together, cutting, quantizing

__all__ = ["fill_layer", "label", "widen_model"]

_RESERVE = 0.03  # of the weights' bytes, beside them: a draft head, caches, and room to compute


def label(source: str, shape: Shape) -> str:
    """Return what a widened model is called wherever its figures are shown."""
    return f"{source}'s function at the {shape.name} shape"


@torch.no_grad()
def widen_model(
    source: Any, shape: Shape, *, seed: int = 0, together: Together | None = None
) -> Any:
    """Embed a Llama model exactly in a larger shape, on its device and in its dtype.

    Every logit is the source's, up to rounding. Each weight is made where it stays, so that no
    second copy is ever in memory.

    Args:
        source: a transformers Llama model.
        shape: what to embed it in.
        seed: of the weights that have no effect.
        together: the processes that are to hold it, each a part of every layer. All make the same
            weights, one layer at a time, and keep their part: none is sent, and the model is the
            one that a single process makes.

    Returns:
        A transformers Llama or Mixtral model, frozen.

    Raises:
        TargetError: the source does not fit into the shape, or the shape into memory; or its
            weights are quantized.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    if not quantizing.is_plain(source):
        raise TargetError(
            f"--shape {shape.name}: quantized weights have no place in another shape; give the "
            "plain checkpoint, and runtime.quantize for what comes of it"
        )
    config = shape.config(source.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=source.dtype, attn_implementation="sdpa"
        )
    rank, count = (together.rank, together.count) if together is not None else (0, 1)
    if together is not None:
        cutting.cut(model, rank, count)
    _require_memory(model, shape, source.device)
    model.to_empty(device=source.device).eval().requires_grad_(False)
    body, origin = model.get_decoder(), source.get_decoder()
    # Its frequencies are no parameters, so nothing has filled them.
    body.rotary_emb = type(body.rotary_emb)(config).to(source.device)
    model.generation_config = GenerationConfig(**source.generation_config.to_dict())

    generator = torch.Generator(source.device).manual_seed(seed)
    place = Placement(source.config, shape, generator)
    for number, layer in enumerate(body.layers):
        given = (
            dict(origin.layers[number].named_parameters()) if number < len(origin.layers) else {}
        )
        with cutting.whole(layer, rank, count) as wide:
            fill_layer(wide, given, place)
    place.norm(body.norm.weight, origin.norm.weight)
    readout = model.get_output_embeddings()
    if readout.weight is not model.get_input_embeddings().weight:
        with cutting.whole(readout, rank, count) as wide:
            place.readout(wide["weight"], source.get_output_embeddings().weight)
    place.embedding(model.get_input_embeddings().weight, source.get_input_embeddings().weight)
    return model


def fill_layer(wide: Mapping[str, Tensor], source: Mapping[str, Tensor], place: Placement) -> None:
    """Fill a decoder layer's weights.

    Args:
        wide: of a Llama or Mixtral layer, by their names in it.
        source: of a Llama layer likewise; empty in a layer without a source.
        place: where the source's go.
    """
    for name, weight in wide.items():
        part = name.split(".")[-2]
        if name == "mlp.experts.gate_up_proj":
            for expert in weight:
                for half, which in zip(expert.chunk(2), ("gate_proj", "up_proj"), strict=True):
                    place.parts[which](half, source.get(f"mlp.{which}.weight"))
        elif name == "mlp.experts.down_proj":
            for expert in weight:
                place.down(expert, source.get("mlp.down_proj.weight"))
        elif name == "mlp.gate.weight":  # all experts are alike, so any routing will do
            place.random(weight)
        else:
            place.parts[part](weight, source.get(name))


def _require_memory(model: Any, shape: Shape, device: torch.device) -> None:
    """Say what would not fit before anything is allocated.

    Raises:
        TargetError: with the bytes needed and free.
    """
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = free_memory(device, reusable=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    if needed * (1 + _RESERVE) > free:
        raise TargetError(
            f"--shape {shape.name}: its weights take {needed / 1e9:.1f} GB in "
            f"{str(model.dtype).removeprefix('torch.')}, and {_RESERVE:.0%} more are needed beside "
            f"them, but {free / 1e9:.1f} GB are free on {where}; choose a smaller shape"
        )
