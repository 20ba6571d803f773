"""Drafters of all levels in one pass in a larger shape, as their target is: Medusa's and blocks.

Knows the layouts of FasterDecoding/Medusa and of z-lab's and JetSpec's DFlash. One thing is not
the source's to the bit: the norms of a block drafter's queries and keys are over a head, and share
an epsilon with those over the hidden size, of which it is a millionth of what they norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eagle.bench.places import Places, wider_layers
from eagle.bench.shapes import Shape
from eagle.plugin import TargetInfo

__all__ = ["BLOCK", "MEDUSA", "NormedPlaces", "in_shape", "widened_medusa"]

MEDUSA = re.compile(r"\d+\.\d+\.(linear\.(weight|bias)|weight)")
"""Names of Medusa's tensors: residual blocks, and LM heads of their own behind them."""

BLOCK = (
    r"(fc|hidden_norm|norm|lm_head|layers\.\d+\.(self_attn\.([qkvo]_proj|[qk]_norm)"
    r"|mlp\.(gate|up|down)_proj|input_layernorm|post_attention_layernorm))\.weight"
)
"""Names of a block drafter's tensors."""


def widened_medusa(tensors: Mapping[str, Tensor], places: Places) -> dict[str, Tensor]:
    """Return the tensors of Medusa's heads in a wider stream.

    Args:
        tensors: of the heads, by their published names.
        places: of their target's shape.
    """
    kinds = {"linear.weight": "fc", "linear.bias": "bias", "weight": "lm_head"}
    return {
        name: places.of_kind(kinds[name.split(".", 2)[2]], tensor)
        for name, tensor in tensors.items()
    }


def in_shape(said: Mapping[str, Any], target: TargetInfo, shape: Shape) -> dict[str, Any]:
    """Return a block drafter's ``dflash_config`` for a widened target.

    Its ids are of layers whose output is taken: the hidden state one further.
    """
    layers = wider_layers([one + 1 for one in said["target_layer_ids"]], target, shape)
    return {**said, "target_layer_ids": [layer - 1 for layer in layers]}


class NormedPlaces(Places):
    """Makes the wide weights of layers that norm their queries and keys, as Qwen3's do.

    A wide head holds a source's entries and zeros beside them, so its mean of squares is smaller.
    The norms undo that and what scores are divided by; so queries are placed as they are, and keys
    have nothing beside them.
    """

    def widened(self, name: str, source: Tensor) -> Tensor:
        """Return the wide tensor of a name in the drafter's network."""
        part = name.split(".")[-2]
        if part in ("q_norm", "k_norm"):
            wide = source.new_empty(self.head_dim)
            self.place.head_norm(wide, source, keys=part == "k_norm")
            return wide
        if part == "k_proj":
            wide = source.new_empty(self._rows["k_proj"], self._stream)
            self.place.bare_key(wide, source)
            return wide
        return super().widened(name, source)
