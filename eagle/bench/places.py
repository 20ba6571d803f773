"""Where the tensors of a draft head go in a wider one; knows their names, no file and no head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eagle.bench.placement import Placement
from eagle.bench.shapes import Shape
from eagle.plugin import TargetInfo

__all__ = ["FC_NORMS", "Places", "wider_layers"]

FC_NORMS = re.compile(r"(input_norm|fc_norm\.\d+)\.weight")
"""Names of the norms in front of an FC, over the target's hidden size."""

_READERS = ("fc", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")


def wider_layers(layers: Sequence[int], target: TargetInfo, shape: Shape) -> tuple[int, ...]:
    """Return which hidden states of a widened target are some of the target's.

    All keep their numbers but the last, which is behind the final norm, as transformers has it.

    Args:
        layers: indices of the target's `hidden_states`.
        target: the target in its own shape.
        shape: what it is embedded in.
    """
    return tuple(shape.layers if layer == target.layers else layer for layer in layers)


class Places:
    """Makes the wide weights of a head, one after another.

    Args:
        source: configuration of its layer.
        values: its configuration as it was written; FC inputs may be of another size.
        shape: sizes of the wide head.
        generator: of weights that have no effect.
    """

    def __init__(
        self, source: Any, values: Mapping[str, Any], shape: Shape, generator: torch.Generator
    ) -> None:
        self.place = Placement(source, shape, generator)
        self._size, self._stream = source.hidden_size, shape.hidden_size
        self._joined = values.get("target_hidden_size") or source.hidden_size
        self.head_dim = shape.head_dim
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
            count = source.numel() // (self._joined if FC_NORMS.fullmatch(name) else self._size)
            return self._in_blocks(source.new_empty(count * self._stream), source, count, "norm")
        rows = source.shape[0] if part == "lm_head" else self._rows.get(part, self._stream)
        # Of inputs side by side each has columns of its own.
        read = self._joined if part == "fc" else self._size
        count = source.shape[1] // read if part in _READERS else 1
        wide = source.new_empty(rows, self._columns.get(part, count * self._stream))
        return self._in_blocks(wide, source, count, part)

    def of_kind(self, part: str, source: Tensor) -> Tensor:
        """Return a wide tensor by what it does: ``fc``, ``lm_head``, or the ``bias`` of one.

        Args:
            part: which of these.
            source: ``[out, H]``; of a bias ``[out]``.
        """
        if part == "bias":
            return self._padded(source)
        rows = self._stream if part == "fc" else source.shape[0]
        return self._in_blocks(source.new_empty(rows, self._stream), source, 1, part)

    def _in_blocks(self, wide: Tensor, source: Tensor, count: int, part: str) -> Tensor:
        made: Callable[[Tensor, Tensor], None]
        made = {
            "norm": self.place.norm,
            "fc": self.place.fusion,
            "lm_head": self.place.readout,
        }.get(part) or self.place.parts[part]
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
