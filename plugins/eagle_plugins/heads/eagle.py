"""The EAGLE draft head in the decoder's terms: weights, cache and passes around the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from eagle.plugin import (
    AttentionBackend,
    BuildContext,
    CheckpointError,
    Committed,
    DecoderHead,
    Drafted,
    Pages,
    StrategyConfig,
    TargetInfo,
    TargetModel,
    check_limit,
    check_shared,
    draw_weights,
    fresh_config,
    llama_config,
    read_weights,
    saved_config,
    write_checkpoint,
)
from eagle_plugins.heads.checkpoint import locate
from eagle_plugins.heads.export import NORMS, export_head
from eagle_plugins.heads.layer import EagleModule
from eagle_plugins.heads.layouts import Layout, identify

__all__ = ["EagleConfig", "EagleHead"]


class EagleConfig(StrategyConfig):
    """Settings of the `eagle` head."""

    weights: str = "auto"
    """Checkpoint: ``auto`` (the shipped one for the target), a folder, or a Hub id."""

    lm_head: Literal["auto", "exact"] = "auto"
    """How drafts read the LM head: ``auto`` (with eight bits where that pays) or ``exact``."""


class EagleHead(DecoderHead):
    """A decoder layer that extrapolates features (arXiv 2401.15077, section 3.2); F = S = H."""

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
            # HASS's configuration says so; a head that has one of them should have both.
            said = layout.config.get("add_para_norm") is True
            norms = said or not layout.tensors.keys().isdisjoint(NORMS)
            if norms and self.inputs != EagleHead.inputs:
                raise CheckpointError(f"{folder} is a head of HASS, which is no {self.kind!r}")
            module = EagleModule(config, bias=bias, inputs=self.inputs, norms=norms)
        tensors = read_weights(layout, module.state_dict())
        check_shared(layout, target)
        check_limit(layout, target)
        tensors = {k: t.to(target.device, target.dtype) for k, t in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
        self.adopt(module, config, target)
        self.attend_by(attention, folder)

    def initialise(self, target: TargetModel, seed: int) -> None:
        """See `eagle.plugin.TrainableHead`; normal weights of the target's own scale."""
        config = fresh_config(target)
        module = EagleModule(config, inputs=self.inputs)
        draw_weights(module, target, config, seed)
        self.adopt(module.to(target.device), config, target)

    @cached_property  # to look for it may ask a server
    def folder(self) -> Path:
        """Where its checkpoint is; see `eagle.plugin.MeasuredHead`."""
        target = self._context.target.name if self._context.target else None
        return locate(self._weights, target, self._context.folder, "eagle")

    @property
    def identity(self) -> str:
        """What its checkpoint is; see `eagle.plugin.Identified`."""
        layers = self._read()[1].num_hidden_layers
        count = "one layer" if layers == 1 else f"{layers} layers"
        return f"a draft head of EAGLE-1 or EAGLE-2 with {count}"

    def export(self, engine: str, out: Path) -> str:
        """See `eagle.plugin.Exportable`."""
        assert self._context.target is not None
        return export_head(self.folder, engine, out, self._context.target)

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

    def adopt(self, module: Any, config: Any, target: TargetModel) -> None:
        """See `DecoderHead.adopt`; draft logits are the target's."""
        super().adopt(module, config, target)
        self._logits = target.logits

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """See `DecoderHead.allocate`."""
        super().allocate(slots, rows, pages)
        if self._rough:  # not on loading: nothing can be trained through a rough LM head
            self._logits = self._target.draft_logits()

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        return self.over_cache(committed.step, self._join(committed.tokens, committed.features))

    def extend(self, drafted: Drafted) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`: a predicted feature takes the true one's place."""
        return self.over_cache(drafted.step, self._join(drafted.tokens, drafted.states))

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
        return self.in_parallel(positions, visible, self._join(tokens, side_by_side(features)))

    def feed_back(self, states: Tensor) -> Tensor:
        """Return the states: they are predicted features."""
        return states

    def _join(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return what goes into the FC, ``[B, T, inputs * H]``."""
        return torch.cat((self._target.embed(tokens), features), dim=-1)

    def save(self, folder: Path) -> None:
        """Write the published layout in bfloat16: ``config.json`` and ``model.safetensors``."""
        config = saved_config(self._config) | {
            "architectures": ["LlamaForCausalLM"],
            "bias": self.module.fc.bias is not None,
            "num_hidden_layers": self.module.depth,
        }
        if self.module.norms:
            config["add_para_norm"] = True
        if self.kind != EagleHead.kind:  # other engines know one kind only, and no such key
            config["draft_kind"] = self.kind
        write_checkpoint(folder, config, self.saved_weights())


def side_by_side(features: Sequence[Tensor]) -> Tensor:
    """Return the features of all copies of some texts, ``[B, A * T, F]``."""
    return features[0] if len(features) == 1 else torch.cat(list(features), dim=1)
