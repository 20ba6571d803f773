"""Weights of fewer bits: a plain checkpoint quantized by torchao while it is loaded.

Knows torchao's formats and what each needs; how a quantized weight multiplies is torchao's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from eagle.errors import TargetError
from eagle.kernels import Int4Linear, int4_serves, is_dense, is_wrapped, stack_int4
from eagle.target.formats import method_of, settings_of

__all__ = [
    "BITS",
    "Quantize",
    "is_plain",
    "kept_bytes",
    "options",
    "precision",
    "quantize",
    "rearrange",
]

Quantize = Literal["int8", "int4"]

BITS = {"int8": 8.0, "int4": 4.25}
"""Bits that a number of a weight takes, its share of the scales included."""

_GROUPS = (128, 64, 32)  # numbers of a row that share a scale, in int4: as few scales as fit
_WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size")


def options(
    kind: Quantize, config: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return what `from_pretrained` is told, to quantize each weight as it comes from the files.

    Args:
        kind: ``int8`` or ``int4``.
        config: the target's configuration.
        dtype: of what stays as it is: embeddings, norms, LM head, activations.
        device: where the weights go.

    Raises:
        TargetError: torchao is not there, the checkpoint is quantized already, or its sizes or the
            dtype do not allow it.
    """
    from transformers import TorchAoConfig

    if own := settings_of(config):
        raise TargetError(
            f"runtime.quantize: {kind} is for plain checkpoints, and this one is quantized already "
            f"({method_of(own)}); leave it out, and it is served as it is"
        )
    return {
        "quantization_config": TorchAoConfig(
            _config(kind, _widths(config.get_text_config()), dtype, device)
        )
    }


@torch.no_grad()
def quantize(model: nn.Module, kind: Quantize) -> None:
    """Quantize the linear layers of a model but its LM head, in place, as `options` does at load.

    Raises:
        TargetError: see `options`.
    """
    text, head = model.config.get_text_config(), model.get_output_embeddings()  # type: ignore
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    config = _config(kind, _widths(text), weight.dtype, weight.device)
    from torchao.quantization import quantize_

    quantize_(model, config, lambda module, name: type(module) is nn.Linear and module is not head)
    rearrange(model)


_TILED = "Int4TilePackedTo4dTensor"  # torchao's layout for GPUs
_AT_ONCE = 1024  # columns of a weight that are unpacked by one product


@torch.no_grad()
def rearrange(model: nn.Module) -> None:
    """Give torchao's layers of four bits on a GPU to kernels that are quick for several rows.

    What the weight is stays as it is, to the bit, and is compared: where it does not come back, the
    layer is left to torchao.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and (made := _rearranged(layer)) is not None:
                setattr(parent, name, made)
                # torchao's layers refer to themselves: their memory would wait for the collector.
                del layer.weight
    stack_int4(model)


def _rearranged(layer: nn.Linear) -> Int4Linear | None:
    weight: Any = layer.weight
    if type(weight).__name__ != _TILED or is_wrapped(layer):
        return None
    (columns, depth), group = weight.shape, weight.block_size[-1]
    if getattr(weight, "act_pre_scale", None) is not None or not int4_serves(
        columns, depth, group, weight.device
    ):
        return None
    pairs = weight.scale_and_zero
    if pairs.dtype != torch.bfloat16:
        return None
    # torchao fills rows and columns up; what is there of them multiplies nothing.
    width = group * len(pairs)
    scales, zeros = pairs[: depth // group, :columns].unbind(-1)
    dense = torch.empty(columns, depth, dtype=torch.bfloat16, device=weight.device)
    whole = torch.empty(columns, depth, dtype=torch.uint8, device=weight.device)
    for start in range(0, depth, _AT_ONCE):
        end = min(start + _AT_ONCE, depth)
        unit = torch.eye(end - start, dtype=torch.bfloat16, device=weight.device)
        unit = nn.functional.pad(unit, (start, width - end))
        found = torch.ops.aten._weight_int4pack_mm(unit, weight.qdata, group, pairs)
        dense[:, start:end] = found[:, :columns].T
        groups = slice(start // group, end // group)
        scale, zero = (
            part[groups].T.float().repeat_interleave(group, 1) for part in (scales, zeros)
        )
        steps = ((dense[:, start:end].float() - zero) / scale).round() + 8
        whole[:, start:end] = steps.nan_to_num(8).clamp(0, 15)
    made = Int4Linear(whole, scales, zeros, layer.bias)
    return made if torch.equal(made.dense(), dense) else None


def _widths(text: Any) -> list[int]:
    heads, size = text.num_attention_heads, getattr(text, "head_dim", None)
    found = [getattr(text, name, None) for name in _WIDTHS]
    return [width for width in (*found, heads * size if size else None) if width]


def _config(kind: Quantize, widths: Iterable[int], dtype: torch.dtype, device: torch.device) -> Any:
    """Return torchao's configuration of a kind; PyTorch's own settings stay as they are."""
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError as error:
        raise TargetError(
            f"runtime.quantize: {kind} needs torchao, which is not installed; install this package "
            "with its extra 'quantize'"
        ) from error
    if kind == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    group = next((g for g in _GROUPS if all(width % g == 0 for width in widths)), None)
    if group is None:
        raise TargetError(
            "runtime.quantize: int4 shares a scale among at least "
            f"{_GROUPS[-1]} numbers, and this target's widths ({', '.join(map(str, widths))}) are "
            "not all multiples of that; int8 has one for each row"
        )
    if device.type == "cuda":
        if dtype != torch.bfloat16:
            raise TargetError(
                "runtime.quantize: int4 multiplies bfloat16 alone on a GPU, and target.dtype is "
                f"{str(dtype).removeprefix('torch.')}; leave it 'auto', or take int8"
            )
        return Int4WeightOnlyConfig(
            group_size=group,
            int4_packing_format="tile_packed_to_4d",
            set_inductor_config=False,
        )
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError as error:
        raise TargetError(
            "runtime.quantize: int4 on a CPU needs torchao 0.18 or newer; update it, or take int8"
        ) from error
    return PrototypeInt4WeightOnlyConfig(group_size=group, set_inductor_config=False)


def is_plain(module: nn.Module) -> bool:
    """Whether a module multiplies by plain tensors of floating point numbers, and nothing else.

    Not where weights are of other kinds, be they parameters or buffers, nor where layers quantize
    what they are given. A forward that only hands work to other devices changes nothing.
    """
    return all(map(is_dense, module.parameters())) and not any(map(_is_odd, module.modules()))


def _is_odd(layer: nn.Module) -> bool:
    """Whether a layer multiplies by more than its parameters say."""
    weight = getattr(layer, "weight", None)  # which may be a buffer
    if hasattr(layer, "qweight") or (isinstance(weight, torch.Tensor) and not is_dense(weight)):
        return True
    replaced = "forward" in vars(layer) and not hasattr(layer, "_hf_hook")
    return replaced and isinstance(layer, nn.Linear | nn.Embedding)


def kept_bytes(layer: nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """Return the weights of one layer by their names, each with the bytes that are read of it.

    Those of its children are not among them. A quantized weight may say the size of what it stands
    for, and what is packed may be in buffers.
    """
    found: dict[str, torch.Tensor] = {**dict(layer.named_parameters(recurse=False))}
    if hasattr(layer, "qweight"):
        found |= dict(layer.named_buffers(recurse=False))
    return {name: (weight, _bytes(weight)) for name, weight in found.items()}


def _bytes(weight: torch.Tensor) -> int:
    if hasattr(weight, "to_local"):
        return _bytes(weight.to_local())  # of a target that is cut, what this process has
    inner = getattr(weight, "__tensor_flatten__", None)
    if inner is not None:
        parts = (getattr(weight, name) for name in inner()[0])
        return sum(_bytes(part) for part in parts if isinstance(part, torch.Tensor))
    scales = getattr(getattr(weight, "quant_state", None), "absmax", None)  # bitsandbytes'
    return weight.nbytes + (0 if scales is None else scales.nbytes)


def precision(model: Any, dtype: torch.dtype) -> str:
    """Return how a model keeps its numbers: its dtype, and what quantizes its weights, if any.

    Two models of one architecture take the same code and time only where this is the same.
    """
    body = model.get_decoder()
    kinds = {type(p).__name__ for p in body.parameters()} - {"Parameter", "Tensor"}
    named = {method_of(settings_of(model.config))} - {""}
    return " ".join((str(dtype), *sorted(kinds | named)))
