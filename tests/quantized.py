"""Small checkpoints in the formats that transformers loads, packed here as their files have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32  # numbers of a row that share a scale
NEEDS = {
    "bnb-int8": ("bitsandbytes",),
    "bnb-nf4": ("bitsandbytes",),
    "fp8": ("compressed_tensors.compressors",),
    "w8a8": ("compressed_tensors.compressors",),
    "w4a16": ("compressed_tensors.compressors",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "gguf": ("gguf",),
}
"""What each format is loaded with."""

Tensors = dict[str, Tensor]


def make(kind: str, plain: Path, folder: Path) -> Path:
    """Quantize a plain checkpoint of Llama into a folder; return that, or a GGUF file in it."""
    if kind.startswith("bnb"):
        return _bitsandbytes(kind, plain, folder)
    if kind == "gguf":
        return _gguf(plain, folder)
    layer, settings = _LAYERS[kind]
    return written(plain, folder, settings, layer)


def written(
    plain: Path, folder: Path, settings: dict[str, Any], layer: Callable[[Tensor], Tensors]
) -> Path:
    """Write a checkpoint whose projections are what *layer* makes of them."""
    folder.mkdir()
    tensors: Tensors = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if "_proj" in name:
            parts = layer(weight).items()
            tensors |= {name.removesuffix("weight") + part: value for part, value in parts}
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(plain / "generation_config.json", folder)
    return folder


def _bitsandbytes(kind: str, plain: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = BitsAndBytesConfig(**(four if kind == "bnb-nf4" else {"load_in_8bit": True}))
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    return folder


def _compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _kept(bits: int, kind: str, strategy: str, dynamic: bool = False, **more: Any) -> Any:
    return {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy,
        "symmetric": True,
        "dynamic": dynamic,
    } | more


def _fp8(weight: Tensor) -> Tensors:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def _w8a8(weight: Tensor) -> Tensors:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def _w4a16(weight: Tensor) -> Tensors:
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1) / 7
    values = (groups / scale[..., None]).round().flatten(1).long() + 8
    return {
        "weight_packed": _packed(values, 1),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def _grouped(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whole numbers from 0 to 15, scales and zero points, each group with its own."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round().clamp(1, 15)
    values = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    return values.flatten(1).long(), scale, zero.long()


def _gptq(weight: Tensor) -> Tensors:
    values, scale, zero = _grouped(weight)
    return {
        "qweight": _packed(values.T, 0),
        "qzeros": _packed(zero.T - 1, 1),
        "scales": scale.T.half().contiguous(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def _awq(weight: Tensor) -> Tensors:
    values, scale, zero = _grouped(weight)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": _packed(values.T, 1, order),
        "qzeros": _packed(zero.T, 1, order),
        "scales": scale.T.half().contiguous(),
    }


def _packed(values: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Return eight numbers of four bits in each int32, along a dimension."""
    eights = values.movedim(dim, -1).unflatten(-1, (-1, 8))
    out = sum(eights[..., place] << (4 * i) for i, place in enumerate(order))
    assert isinstance(out, Tensor)
    signed = torch.where(out >= 2**31, out - 2**32, out)
    return signed.int().movedim(-1, dim).contiguous()


_LAYERS: dict[str, tuple[Callable[[Tensor], Tensors], dict[str, Any]]] = {
    "fp8": (
        _fp8,
        _compressed(
            "float-quantized", _kept(8, "float", "channel"), _kept(8, "float", "token", True)
        ),
    ),
    "w8a8": (
        _w8a8,
        _compressed("int-quantized", _kept(8, "int", "channel"), _kept(8, "int", "token", True)),
    ),
    "w4a16": (
        _w4a16,
        _compressed("pack-quantized", _kept(4, "int", "group", group_size=GROUP), None),
    ),
    "gptq": (
        _gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    ),
    "awq": (
        _awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True},
    ),
}


def _gguf(plain: Path, folder: Path) -> Path:
    """Write a GGUF file of eight bits, without a tokenizer."""
    import gguf
    import numpy as np

    folder.mkdir()
    path = folder / "tiny.gguf"
    config = json.loads((plain / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in load_file(plain / "model.safetensors").items():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:  # halves of a head's rotary pairs lie beside each other in GGUF
                weight = weight.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        data = weight.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if "proj" in name else gguf.GGMLQuantizationType.F32
        packed = np.ascontiguousarray(gguf.quants.quantize(data, kind))
        found = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(found, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
