"""The EAGLE draft head in the decoder's terms: weights, cache and passes around the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.plugin import (
    AttentionBackend,
    BuildContext,
    CheckpointError,
    Committed,
    Drafted,
    Step,
    StrategyConfig,
    Switch,
    TargetInfo,
    TargetModel,
    TreeCache,
    arrange,
)
from eagle_plugins.heads.architecture import llama_config
from eagle_plugins.heads.checkpoint import locate, read_weights, write_checkpoint
from eagle_plugins.heads.layer import EagleModule
from eagle_plugins.heads.layouts import Layout, identify
from eagle_plugins.heads.shared import check_shared

__all__ = ["EagleConfig", "EagleHead"]

# Copied from the target's configuration when a head is made for training.
_SHARED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "rope_parameters", "max_position_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


class EagleConfig(StrategyConfig):
    """Settings of the `eagle` head."""

    weights: str = "auto"
    """Checkpoint: ``auto`` (the shipped one for the target), a folder, or a Hub id."""

    lm_head: Literal["auto", "exact"] = "auto"
    """How drafts read the LM head: ``auto`` (with eight bits where that pays) or ``exact``."""


class EagleHead:
    """A decoder layer that extrapolates features (arXiv 2401.15077, section 3.2); F = S = H."""

    capturable = True
    module: EagleModule
    _logits: Callable[[Tensor], Tensor]

    kind: ClassVar[str] = "eagle"
    """What a checkpoint is compared with; heads that put other things into the FC have another."""

    inputs: ClassVar[int] = 2
    """Vectors of size H that go into the FC."""

    def __init__(self, config: EagleConfig, context: BuildContext) -> None:
        self._weights, self._context = config.weights, context
        self._rough = config.lm_head == "auto"

    def feature_size(self, target: TargetInfo) -> int:
        """Return H, after comparing the checkpoint's sizes with the target's.

        Raises:
            CheckpointError: it was made for another hidden size or vocabulary, or is a head of
                another kind.
        """
        folder = self.folder
        _, config = self._read()
        for key, ours in (("hidden_size", target.hidden_size), ("vocab_size", target.vocab_size)):
            theirs = getattr(config, key)
            if theirs != ours:
                raise CheckpointError(
                    f"the draft head in {folder} has {key} {theirs}, the target {target.name!r} "
                    f"has {ours}; a head only works with the target it was trained for"
                )
        return target.hidden_size

    def state_size(self, target: TargetInfo) -> int:
        """Return H: states are predicted features."""
        return target.hidden_size

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load the checkpoint in the target's dtype, on its device.

        Raises:
            CheckpointError: it is damaged, its tensors are not those of its configuration, it is
                a head of another kind, or it comes with the embedding of another target.
        """
        folder = self.folder
        layout, config = self._read()
        with torch.device("meta"):
            bias = "fc.bias" in layout.tensors  # absent from older configurations
            module = EagleModule(config, bias=bias, inputs=self.inputs)
        tensors = read_weights(layout, module.state_dict())
        check_shared(layout, target)
        tensors = {k: t.to(target.device, target.dtype) for k, t in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
        self._adopt(module, config, target)
        self._attention = attention
        head_dim = module.attention.head_dim
        if reason := attention.unsupported(target.device, target.dtype, head_dim):
            raise CheckpointError(
                f"the attention backend cannot serve the head in {folder}: {reason}"
            )

    def initialise(self, target: TargetModel, seed: int) -> None:
        """See `eagle.plugin.TrainableHead`; normal weights of the target's own scale."""
        from transformers import LlamaConfig

        theirs = target.config
        config = LlamaConfig(
            **{
                key: getattr(theirs, key)
                for key in _SHARED
                if getattr(theirs, key, None) is not None
            },
            num_hidden_layers=1,
        )
        generator = torch.Generator().manual_seed(seed)
        std = getattr(theirs, "initializer_range", config.initializer_range)
        module = EagleModule(config, inputs=self.inputs)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std, generator=generator)
        self._adopt(module.to(target.device), config, target)

    @cached_property  # to look for it may ask a server
    def folder(self) -> Path:
        """Where its checkpoint is; see `eagle.plugin.MeasuredHead`."""
        target = self._context.target.name if self._context.target else None
        return locate(self._weights, target, self._context.folder)

    def _read(self) -> tuple[Layout, Any]:
        """Return the checkpoint's layout and its configuration, as Llama's."""
        layout = identify(self.folder)
        layout.require("eagle")
        config = llama_config(layout.config, self.folder / "config.json", layout.tensors)
        theirs = getattr(config, "draft_kind", EagleHead.kind)
        if theirs != self.kind:
            raise CheckpointError(
                f"{self.folder} is a draft head of the kind {theirs!r}, not {self.kind!r}; "
                f"use it with head.name={theirs}, or give another one as head.weights"
            )
        return layout, config

    def _adopt(self, module: EagleModule, config: Any, target: TargetModel) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.module, self._config, self._target = module, config, target
        self._logits = target.logits
        self._rotary = LlamaRotaryEmbedding(config).to(target.device)

    def allocate(self, slots: int, rows: int) -> None:
        """Allocate the cache of its layers, and lay out their weights for decoding."""
        # Not on loading: neither packed nor stacked weights can be trained, nor through rough ones.
        arrange(self.module, Switch())
        if self._rough:
            self._logits = self._target.draft_logits()
        attention = self.module.attention
        self._cache = TreeCache(
            layers=len(self.module.layers),
            slots=slots,
            kv_heads=attention.kv_heads,
            rows=rows,
            head_dim=attention.head_dim,
            dtype=self._target.dtype,
            device=self._target.device,
        )

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        return self._cached(self._join(committed.tokens, committed.features), committed.step)

    def extend(self, drafted: Drafted) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`: a predicted feature takes the true one's place."""
        return self._cached(self._join(drafted.tokens, drafted.states), drafted.step)

    def logits(self, states: Tensor) -> Tensor:
        """Return the frozen LM head's logits of predicted features."""
        return self._logits(states)

    def train_states(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Sequence[Tensor],
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """See `eagle.plugin.TrainableHead.train_states`."""
        return self._parallel(self._join(tokens, side_by_side(features)), positions, visible)

    def feed_back(self, states: Tensor) -> Tensor:
        """Return the states: they are predicted features."""
        return states

    def _join(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return what goes into the FC, ``[B, T, inputs * H]``."""
        return torch.cat((self._target.embed(tokens), features), dim=-1)

    def _cached(self, joined: Tensor, step: Step) -> Tensor:
        """Run the network on new entries over the cache."""
        block = self.module.attention
        plan = self._attention.plan(step, block.heads, block.kv_heads, joined.dtype)

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys, values = self._cache.write(layer, keys, values, step)
            return self._attention.attend(query, keys, values, plan, block.head_dim**-0.5)

        out: Tensor = self.module(joined, *self._rotary(joined, step.positions), attend)
        return out

    def _parallel(self, joined: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Run the network on whole texts without a cache."""
        block = self.module.attention
        groups = block.heads // block.kv_heads

        def attend(_: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            # Repeated, since CUDA's fused kernels take a mask or grouped heads, not both.
            keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
            return out.transpose(1, 2)

        out: Tensor = self.module(joined, *self._rotary(joined, positions), attend)
        return out

    def save(self, folder: Path) -> None:
        """Write the published layout in bfloat16: ``config.json`` and ``model.safetensors``."""
        config = self._config.to_diff_dict() | {
            "architectures": ["LlamaForCausalLM"],
            "bias": self.module.fc.bias is not None,
            "dtype": "bfloat16",
            "num_hidden_layers": len(self.module.layers),
        }
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
            config[key] = getattr(self._config, key)
        if self.kind != EagleHead.kind:  # other engines know one kind only, and no such key
            config["draft_kind"] = self.kind
        # Copied where they have the right dtype too: fused layers' weights share their memory.
        tensors = {
            k: t.detach().to(torch.bfloat16, copy=True) for k, t in self.module.state_dict().items()
        }
        write_checkpoint(folder, config, tensors)


def side_by_side(features: Sequence[Tensor]) -> Tensor:
    """Return the features of all copies of some texts, ``[B, A * T, F]``."""
    return features[0] if len(features) == 1 else torch.cat(list(features), dim=1)
