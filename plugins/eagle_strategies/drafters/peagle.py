"""P-EAGLE (arXiv 2602.01469): EAGLE-3's pairs for what is known, mask pairs for the levels below.

Level 1 is said by the root's own entry, as in EAGLE-3; each further level by a mask token with a
learned hidden state, in one pass for all of them, each seeing those before it. Knows the layout of
vllm-project/speculators (``src/speculators/models/peagle``); drafts, and does not train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.plugin import (
    EMBEDDING,
    VOCABULARY_MAPS,
    AttentionBackend,
    BuildContext,
    CheckpointError,
    Committed,
    DecoderHead,
    Drafted,
    FCNorms,
    HeadFiles,
    IncompatibleError,
    Int8Linear,
    Pages,
    Step,
    TargetInfo,
    TargetModel,
    check_limit,
    check_verifier,
    int8_linear,
    own_embedding,
    read_weights,
    stored_vocabulary,
)
from eagle_strategies.drafters.block_checks import check_sizes
from eagle_strategies.drafters.block_files import (
    VERIFIERS,
    layers_config,
    whole_number,
)
from eagle_strategies.drafters.parallel_settings import ParallelConfig
from eagle_strategies.drafters.peagle_network import PEagleNetwork

__all__ = ["PEagleDrafter"]

_IDS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True)
class _Variant:
    config: Any
    layers: tuple[int, ...] | None
    vocab: int
    mask: int
    norms: FCNorms
    norm_before_residual: bool
    head_norms: bool
    levels: int | None

    def layers_of(self, target: TargetInfo) -> tuple[int, ...]:
        """Return the hidden states that it joins; speculators' default are EAGLE-3's."""
        return self.layers or (2, target.layers // 2, target.layers - 3)


class PEagleDrafter(DecoderHead):
    """EAGLE-3's layer and further ones; F = the joined layers', S = H: the LM head's input."""

    module: PEagleNetwork

    def __init__(self, config: ParallelConfig, context: BuildContext, files: HeadFiles) -> None:
        self._settings, self._context, self._files = config, context, files
        self._ids: Tensor | None = None
        self._embedding: Tensor | None = None

    @property
    def folder(self) -> Path:
        """Where its checkpoint is; see `eagle.plugin.MeasuredHead`."""
        return self._files.folder

    @cached_property
    def _variant(self) -> _Variant:
        said, path = self._files.config, self.folder / "config.json"
        inner = said.get("transformer_layer_config")
        if not isinstance(inner, Mapping):
            raise CheckpointError(f"{path}: transformer_layer_config should be a mapping")
        if inner.get("model_type") not in ("llama", "qwen3"):
            raise CheckpointError(
                f"{path}: model_type is {inner.get('model_type')!r:.40}; layers of 'llama' and "
                "'qwen3' are read"
            )
        before = said.get("norm_before_residual")
        if not isinstance(before, bool):
            raise CheckpointError(
                f"{path}: norm_before_residual should be true or false: left out, speculators "
                "takes it for false and vLLM for true"
            )
        ids = said.get(_IDS)
        if ids is not None and not (
            isinstance(ids, list) and ids and all(type(one) is int for one in ids)
        ):
            raise CheckpointError(f"{path}: {_IDS} should be a list of layers' numbers")
        joined, each = (said.get(key) is True for key in ("norm_before_fc", "fc_norm"))
        if joined and each:
            raise CheckpointError(f"{path}: norm_before_fc and fc_norm exclude each other")
        return _Variant(
            config=layers_config(self._files, inner, path),
            layers=None if ids is None else tuple(ids),
            vocab=whole_number(path, said, "draft_vocab_size"),
            mask=whole_number(path, said, "mask_token_id", least=0),
            norms="joined" if joined else "each" if each else "none",
            norm_before_residual=before,
            head_norms=inner["model_type"] == "qwen3",
            levels=_trained_levels(said.get("speculators_config")),
        )

    @property
    def identity(self) -> str:
        """What its checkpoint is; see `eagle.plugin.Identified`."""
        variant = self._variant
        layers = ", ".join(map(str, variant.layers or ())) or "2, half and all but 3 of the layers"
        count = variant.config.num_hidden_layers
        return (
            f"a draft head of P-EAGLE in the layout of speculators: {count} "
            f"layer{'s' * (count > 1)} over hidden states {layers}, draft vocabulary "
            f"{variant.vocab:,} of {variant.config.vocab_size:,}"
        )

    def feature_layers(self, target: TargetInfo) -> tuple[int, ...]:
        """See `eagle.plugin.NamesLayers`."""
        return self._variant.layers_of(target)

    def feature_size(self, target: TargetInfo) -> int:
        """Return the joined layers' size, after comparing the checkpoint with the target.

        Raises:
            CheckpointError: it was made for another target.
        """
        variant = self._variant
        layers = variant.layers_of(target)
        check_sizes(variant.config, layers, variant.mask, self.folder, target, target.layers - 1)
        return len(layers) * target.hidden_size

    def deepest_level(self) -> int | None:
        """See `eagle.plugin.LimitedDepth`."""
        return self._variant.levels

    def state_size(self, target: TargetInfo) -> int:
        """Return H: a state is the LM head's input."""
        return target.hidden_size

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load the checkpoint in the target's dtype, on its device.

        Raises:
            CheckpointError: it is damaged, its tensors are not those of its configuration, or it
                was made for another target.
        """
        files, variant, info = self._files, self._variant, target.info
        self.feature_size(info)
        with torch.device("meta"):
            module = PEagleNetwork(
                variant.config,
                joined=len(variant.layers_of(info)),
                vocab=variant.vocab,
                norms=variant.norms,
                norm_before_residual=variant.norm_before_residual,
                head_norms=variant.head_norms,
            )
        apart = (EMBEDDING, *VOCABULARY_MAPS, *VERIFIERS)
        tensors = read_weights(files, module.state_dict(), apart)
        ids = stored_vocabulary(files, variant.vocab, info.vocab_size)
        # Trained unless the configuration says otherwise, unlike EAGLE-3's.
        trained = files.config.get("embed_requires_grad", True)
        said = HeadFiles(
            files.folder, {**files.config, "embed_requires_grad": trained}, files.tensors
        )
        embedding = own_embedding(said, target, variant.config.hidden_size)
        check_verifier(files, target)
        check_limit(files, target)
        tensors = {k: t.to(target.device, target.dtype) for k, t in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
        self._ids = None if ids is None else ids.to(target.device)
        if embedding is not None:
            embedding = embedding.to(target.device, target.dtype)
        self._embedding = embedding
        self._rough: Int8Linear | None = None
        self.adopt(module, variant.config, target)
        self.attend_by(attention, files.folder)

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """See `DecoderHead.allocate`; drafts may read the LM head with eight bits from now on."""
        super().allocate(slots, rows, pages)
        if self._settings.lm_head == "auto" and self._rough is None:
            self._rough = int8_linear(self.module.lm_head)

    @property
    def draft_vocab(self) -> Tensor | None:
        """See `eagle.plugin.OwnVocabulary`."""
        return self._ids

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        hidden = self.module.fuse(committed.features)
        return self.over_cache(committed.step, self._embed(committed.tokens), hidden)

    def draft(self, tokens: Tensor, states: Tensor, step: Step) -> Tensor:
        """See `eagle.plugin.ParallelHead.draft`.

        Raises:
            IncompatibleError: the tree is deeper than it was trained for.
        """
        levels, most = step.rows.shape[1], self._variant.levels
        if most is not None and levels > most:
            raise IncompatibleError(
                f"{levels} levels are to be drafted, but the P-EAGLE head in {self.folder} was "
                f"made for {most}: use a tree that is less deep"
            )
        said = states[:, None]
        if levels > 1:
            masks = torch.full_like(tokens, self._variant.mask)[:, None].expand(-1, levels - 1)
            hidden = self.module.fuse(self.module.mask_hidden).expand(*masks.shape, -1)
            behind = Step.chain(step.lengths, levels - 1, step.span, step.slot)
            further = self.over_cache(behind, self._embed(masks), hidden)
            said = torch.cat((said, further), dim=1)
        return self.logits(said)

    def extend(self, drafted: Drafted) -> Tensor:
        """Do not: nothing is drafted level by level."""
        raise NotImplementedError("P-EAGLE drafts all levels in one pass")

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of its own LM head, ``[B, W, Vd]``."""
        rough = self._rough
        if rough is None or not rough.serves(states):
            out: Tensor = self.module.lm_head(states)
            return out
        return rough(states)

    def _embed(self, tokens: Tensor) -> Tensor:
        if self._embedding is None:
            return self._target.embed(tokens)
        return F.embedding(tokens, self._embedding)


def _trained_levels(said: Any) -> int | None:
    """Return how many levels a configuration says it was trained for, if it does."""
    methods = said.get("proposal_methods") if isinstance(said, Mapping) else None
    first = methods[0] if isinstance(methods, list) and methods else None
    count = first.get("speculative_tokens") if isinstance(first, Mapping) else None
    return count if type(count) is int and count > 0 else None
