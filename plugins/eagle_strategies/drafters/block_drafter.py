"""A block of levels drafted in one pass, given features of several of the target's layers.

DFlash (arXiv 2602.06036), whose entries see their block both ways, and JetSpec (arXiv 2606.18394),
whose entries see those before them. Weights, cache and passes around the network; no layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    HeadFiles,
    IncompatibleError,
    Pages,
    Step,
    TargetInfo,
    TargetModel,
    check_limit,
    check_verifier,
    draw_weights,
    find_checkpoint,
    fresh_config,
    int8_linear,
    own_embedding,
    read_weights,
    stored_vocabulary,
    write_checkpoint,
)
from eagle_strategies.drafters.block_checks import check_target
from eagle_strategies.drafters.block_files import (
    VERIFIERS,
    BlockVariant,
    read_block_variant,
    spread_layers,
    written_config,
)
from eagle_strategies.drafters.block_network import BlockNetwork
from eagle_strategies.drafters.block_training import Blocks
from eagle_strategies.drafters.parallel_settings import ParallelConfig

__all__ = ["BlockDrafter"]


class BlockDrafter(DecoderHead):
    """Layers over a block; F = the layers' side by side, S = 1: what is known is in its cache."""

    module: BlockNetwork
    _logits: Callable[[Tensor], Tensor]

    def __init__(self, config: ParallelConfig, context: BuildContext) -> None:
        self._settings, self._context = config, context
        self._made: BlockVariant | None = None
        self._ids: Tensor | None = None

    @cached_property  # to look for it may ask a server
    def folder(self) -> Path:
        """Where its checkpoint is; see `eagle.plugin.MeasuredHead`."""
        if self._settings.weights == "auto":
            raise CheckpointError(
                "no parallel drafter is shipped; give its folder or Hub id as head.weights, or "
                "train one with `eagle train parallel`"
            )
        return find_checkpoint(self._settings.weights, self._context.folder)

    @cached_property
    def _read(self) -> tuple[HeadFiles, BlockVariant]:
        files = HeadFiles.read(self.folder)
        return files, read_block_variant(files)

    def _variant(self, target: TargetInfo) -> BlockVariant:
        """Return what this drafter is, or is going to be where it is yet to be made."""
        if self._made is not None:
            return self._made
        if not self._context.fresh:
            return self._read[1]
        said = self._settings
        given = said.layers
        return BlockVariant(
            config=None,
            layers=spread_layers(target.layers, said.depth) if given == "auto" else given,
            levels=said.block_size - 1,
            mask=said.mask_token_id or 0,
            causal=said.causal,
            anchored=said.sample_from_anchor,
        )

    @property
    def identity(self) -> str:
        """What its checkpoint is; see `eagle.plugin.Identified`."""
        variant = self._read[1]
        return f"a block drafter in the layout of {variant.publisher}: {variant}"

    def feature_layers(self, target: TargetInfo) -> tuple[int, ...]:
        """See `eagle.plugin.NamesLayers`."""
        return self._variant(target).layers

    def feature_size(self, target: TargetInfo) -> int:
        """Return the layers' size side by side, after comparing the checkpoint with the target.

        Raises:
            CheckpointError: it is of another method, or was made for another target.
        """
        variant = self._variant(target)
        if variant.config is not None:
            check_target(variant, self.folder if self._made is None else Path(), target)
        return len(variant.layers) * target.hidden_size

    def deepest_level(self) -> int:
        """See `eagle.plugin.LimitedDepth`."""
        said = self._settings
        return said.block_size - 1 if self._context.fresh else self._read[1].levels

    def state_size(self, target: TargetInfo) -> int:
        """Return 1: a state says that what was absorbed is finite, and no more."""
        return 1

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load the checkpoint in the target's dtype, on its device.

        Raises:
            CheckpointError: it is damaged, its tensors are not those of its configuration, or it
                was made for another target.
        """
        files, variant = self._read
        check_target(variant, files.folder, target.info)
        with torch.device("meta"):
            module = _network(variant)
        apart: tuple[str, ...] = ()
        if variant.publisher == "speculators":
            apart = (EMBEDDING, *VOCABULARY_MAPS, *VERIFIERS)
            own_embedding(files, target, variant.config.hidden_size)  # a frozen copy, so the same
        tensors = read_weights(files, module.state_dict(), apart)
        ids = None
        if variant.vocab is not None:
            ids = stored_vocabulary(files, variant.vocab, target.info.vocab_size)
        check_verifier(files, target)
        check_limit(files, target)
        tensors = {k: t.to(target.device, target.dtype) for k, t in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
        self._ids, self._made = None if ids is None else ids.to(target.device), variant
        self.adopt(module, variant.config, target)
        self.attend_by(attention, files.folder)

    def adopt(self, module: Any, config: Any, target: TargetModel) -> None:
        """See `DecoderHead.adopt`; draft logits are the target's, or its own LM head's."""
        super().adopt(module, config, target)
        self._logits = target.logits if self._own is None else self._own
        self._rough = False

    @property
    def _own(self) -> Any:
        return getattr(self.module, "lm_head", None)

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """See `DecoderHead.allocate`; drafts may read the LM head with eight bits from now on."""
        super().allocate(slots, rows, pages)
        if self._settings.lm_head == "exact" or self._rough:
            return
        self._rough = True
        if self._own is None:
            self._logits = self._target.draft_logits()
        elif (rough := int8_linear(self._own)) is not None:
            own = self._own
            self._logits = lambda x: rough(x) if rough.serves(x) else own(x)

    @property
    def draft_vocab(self) -> Tensor | None:
        """See `eagle.plugin.OwnVocabulary`."""
        return self._ids

    def absorb(self, committed: Committed) -> Tensor:
        """Keep what layers see of features: row t is of the feature at position t."""
        step = self._cache.locate(committed.step)
        context = self.module.context(committed.features)
        pairs = self.module.remembered(context, *self._rotary(context, step.positions))
        for layer, (keys, values) in enumerate(pairs):
            self._cache.write(layer, keys, values, step)
        return context.mean(-1, keepdim=True)

    def draft(self, tokens: Tensor, states: Tensor, step: Step) -> Tensor:
        """See `eagle.plugin.ParallelHead.draft`.

        Blocks are as long as the tree is deep, as in the authors' code for another ``block_size``.

        Raises:
            IncompatibleError: the tree is deeper than blocks were in training.
        """
        made, levels = self._made, step.rows.shape[1]
        assert made is not None
        self._check(levels)
        size = levels if made.anchored else levels + 1
        block = Step.chain(step.lengths, size, step.span, step.slot)
        if not made.causal:
            block = replace(block, tail=torch.ones_like(block.tail))
        masks = torch.full_like(tokens, made.mask)[:, None].expand(-1, size - 1)
        embedded = self._target.embed(torch.cat((tokens[:, None], masks), dim=1))
        return self._logits(self.over_cache(block, embedded)[:, size - levels :])

    def _check(self, levels: int) -> None:
        most = self._made.levels if self._made else levels
        if levels > most:
            raise IncompatibleError(
                f"{levels} levels are to be drafted, but the parallel drafter was made for blocks "
                f"of {most}: use a tree that is less deep, or train one of a larger block_size"
            )

    def extend(self, drafted: Drafted) -> Tensor:
        """Do not: nothing is drafted level by level."""
        raise NotImplementedError("a parallel drafter drafts all levels in one pass")

    def logits(self, states: Tensor) -> Tensor:
        """Return the LM head's logits of what the network gave, ``[B, W, H]``."""
        # The norm's are float32 in training, which a packed LM head does not take.
        return self._logits(states.to(self._target.dtype))

    def level_logits(self, states: Tensor, level: int) -> Tensor:
        """See `eagle.plugin.TrainsLevels.level_logits`."""
        return self.logits(states)

    def initialise(self, target: TargetModel, seed: int) -> None:
        """See `eagle.plugin.TrainableHead`; normal weights of the target's own scale."""
        config, mask = fresh_config(target), self._settings.mask_token_id
        config.num_hidden_layers = self._settings.depth
        if mask is None:
            known = (config.pad_token_id, config.eos_token_id, 0)
            one = next(token for token in known if token is not None)
            mask = one[0] if isinstance(one, list) else one
        variant = replace(self._variant(target.info), config=config, mask=mask)
        check_target(variant, Path("head"), target.info)
        module = _network(variant)
        draw_weights(module, target, config, seed)
        self._ids, self._made = None, variant
        self.adopt(module.to(target.device), config, target)

    def train_levels(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Tensor,
        positions: Tensor,
        visible: Tensor,
        levels: int,
    ) -> Sequence[Tensor]:
        """See `eagle.plugin.TrainsLevels.train_levels`: a block behind every token."""
        made = self._made
        assert made is not None
        self._check(levels)
        if made.vocab is not None and torch.is_grad_enabled():  # its ranks can be measured
            raise IncompatibleError(
                f"the parallel drafter in {self.folder} is in the layout of speculators, with an "
                "LM head of its own: it is drafted with, and not trained further"
            )
        blocks = Blocks.of(positions, visible, levels, causal=made.causal, anchored=made.anchored)
        context = self.module.context(features)
        seen = self.module.remembered(context, *self._rotary(context, positions))
        copies = len(blocks.roots) // tokens.shape[1]
        filled = tokens.repeat(1, copies).where(blocks.roots, made.mask)
        embedded = self._target.embed(filled)
        groups = self.module.attention.heads // self.module.attention.kv_heads

        def attend(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            pairs = zip(seen[layer], (keys, values), strict=True)
            # Repeated, since CUDA's fused kernels take a mask or grouped heads, not both.
            rows, held = (torch.cat(p, dim=2).repeat_interleave(groups, dim=1) for p in pairs)
            out = F.scaled_dot_product_attention(query, rows, held, attn_mask=blocks.mask)
            return out.transpose(1, 2)

        out = self.module(embedded, *self._rotary(embedded, blocks.positions), attend)
        parts = out.chunk(copies, dim=1)
        return [parts[copy] for copy in blocks.levels]

    def save(self, folder: Path) -> None:
        """Write the layout of z-lab and JetSpec in bfloat16."""
        variant = self._made
        assert variant is not None
        write_checkpoint(folder, written_config(variant, self._target.info), self.saved_weights())


def _network(variant: BlockVariant) -> BlockNetwork:
    return BlockNetwork(variant.config, joined=len(variant.layers), vocab=variant.vocab)
