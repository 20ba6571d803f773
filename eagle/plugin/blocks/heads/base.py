"""What heads of a decoder layer, or a few, have in common: cache, rotary positions, attention.

Knows a network by its passes alone: what goes into it and what comes out is a subclass's business.
Plug-ins may derive theirs from it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.plugin import (
    AttentionBackend,
    CheckpointError,
    Pages,
    Step,
    TargetError,
    TargetModel,
    TreeCache,
)

__all__ = [
    "AttentionHeads",
    "DecoderHead",
    "HeadNetwork",
    "draw_weights",
    "fresh_config",
    "saved_config",
]

# Copied from the target's configuration when a head is made for training.
_SHARED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "rope_parameters", "max_position_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


class AttentionHeads(Protocol):
    """Attention heads of a layer, all layers having the same."""

    heads: int
    kv_heads: int
    head_dim: int


class HeadNetwork(Protocol):
    """What `DecoderHead` runs, a `torch.nn.Module`.

    Called with a head's own inputs, ``[B, T, *]`` each, then rotary cosines and sines
    ``[B, T, head_dim]`` and an `eagle.plugin.Attend`; it returns ``[B, T, *]``.
    """

    @property
    def depth(self) -> int:
        """How many layers attend, each with keys and values of its own."""
        ...

    @property
    def attention(self) -> AttentionHeads:
        """The heads of its attention: of a network that is cut, those of this process."""
        ...


class DecoderHead:
    """The passes of a head over its network: over a cache, and over whole texts without one."""

    capturable = True
    paged = True
    module: Any
    _parted = False

    def adopt(self, module: HeadNetwork, config: Any, target: TargetModel) -> None:
        """Take a network, whose rotary positions are those of a Llama configuration."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.module, self._config, self._target = module, config, target
        self._rotary = LlamaRotaryEmbedding(config).to(target.device)

    def attend_by(self, attention: AttentionBackend, folder: object) -> None:
        """Take an attention backend.

        Args:
            attention: the backend.
            folder: of the checkpoint, for messages.

        Raises:
            CheckpointError: it cannot serve heads of this size.
        """
        self._attention, target = attention, self._target
        size = self.module.attention.head_dim
        if reason := attention.unsupported(target.device, target.dtype, size):
            raise CheckpointError(
                f"the attention backend cannot serve the head in {folder}: {reason}"
            )

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate the cache of its layers, and lay out their weights for decoding."""
        # Not on loading: neither packed nor stacked weights can be trained.
        self._parted = self._target.lay_out(self.module)
        attention = self.module.attention
        self._cache = TreeCache(
            layers=self.module.depth,
            slots=slots,
            kv_heads=attention.kv_heads,
            rows=rows,
            head_dim=attention.head_dim,
            dtype=self._target.dtype,
            device=self._target.device,
            pages=pages,
        )

    def saved_weights(self) -> dict[str, Tensor]:
        """Return the network's weights as heads are saved, in bfloat16.

        Raises:
            CheckpointError: processes hold the network together, and none has all of it.
        """
        if self._parted:
            raise CheckpointError(
                "a draft head that is cut over processes cannot be saved: each has a part of it; "
                "with target.cut_draft: false each has all of it"
            )
        # Copied where they have the right dtype too: fused layers' weights share their memory.
        return {
            k: t.detach().to(torch.bfloat16, copy=True) for k, t in self.module.state_dict().items()
        }

    def over_cache(self, step: Step, *inputs: Tensor) -> Tensor:
        """Run the network on new entries, each of which sees what a step says."""
        block, step = self.module.attention, self._cache.locate(step)
        plan = self._attention.plan(step, block.heads, block.kv_heads, inputs[0].dtype)

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys, values = self._cache.write(layer, keys, values, step)
            return self._attention.attend(query, keys, values, plan, block.head_dim**-0.5)

        out: Tensor = self.module(*inputs, *self._rotary(inputs[0], step.positions), attend)
        return out

    def in_parallel(self, positions: Tensor, visible: Tensor, *inputs: Tensor) -> Tensor:
        """Run the network on whole texts without a cache.

        Args:
            positions: int64 ``[B, T]``.
            visible: bool ``[B, 1, T, T]``; entry (t, s) says that t sees s.
            inputs: of the network.
        """
        block = self.module.attention
        groups = block.heads // block.kv_heads

        def attend(_: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            # Repeated, since CUDA's fused kernels take a mask or grouped heads, not both.
            keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
            return out.transpose(1, 2)

        out: Tensor = self.module(*inputs, *self._rotary(inputs[0], positions), attend)
        return out


def fresh_config(target: TargetModel) -> Any:
    """Return the configuration of a new head of one layer: sizes and positions of the target's.

    Raises:
        TargetError: its layers are of different sizes.
    """
    from transformers import LlamaConfig

    theirs = target.config
    try:
        given = {key: getattr(theirs, key, None) for key in _SHARED}
    except RuntimeError as error:  # transformers', of configurations that have one for each layer
        raise TargetError(
            f"a new head cannot be shaped after the target {target.info.name!r}: its layers are of "
            "different sizes, and so it cannot be served either"
        ) from error
    return LlamaConfig(**{k: v for k, v in given.items() if v is not None}, num_hidden_layers=1)


def draw_weights(module: nn.Module, target: TargetModel, config: Any, seed: int) -> None:
    """Give a new network normal weights of the target's own scale; norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(target.config, "initializer_range", config.initializer_range)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std, generator=generator)


def saved_config(config: Any) -> dict[str, Any]:
    """Return what of a configuration is saved with a head, sizes in any case."""
    saved: dict[str, Any] = config.to_diff_dict()
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        saved[key] = getattr(config, key)
    return saved | {"dtype": "bfloat16"}
