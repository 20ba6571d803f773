"""The EAGLE-3 draft head in the decoder's terms: weights, vocabulary and passes around the network.

arXiv 2503.01840: the target's low, middle and high hidden states are joined by an FC; below that
the head is fed its own output, and its LM head has a vocabulary of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
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
    Int8Linear,
    Pages,
    StrategyConfig,
    TargetInfo,
    TargetModel,
    check_limit,
    check_verifier,
    draw_weights,
    fresh_config,
    int8_linear,
    maps_of,
    most_frequent,
    normed,
    own_embedding,
    read_weights,
    stored_vocabulary,
    write_checkpoint,
)
from eagle_plugins.heads.checkpoint import locate
from eagle_plugins.heads.export import export_head, variant_config
from eagle_plugins.heads.layouts import Layout, identify
from eagle_plugins.heads.midlayer import Eagle3Module
from eagle_plugins.heads.variants import Variant, low_middle_high, read_variant

__all__ = ["Eagle3Config", "Eagle3Head"]

log = logging.getLogger("eagle.heads")

_DRAFT_VOCAB = 32_000  # the authors'


class Eagle3Config(StrategyConfig):
    """Settings of the `eagle3` head; ``auto`` is what its checkpoint says.

    Of a head that is made for training they say what it is to be, ``auto`` being EAGLE-3 as
    published.
    """

    weights: str = "auto"
    """Checkpoint: ``auto`` (the shipped one for the target), a folder, or a Hub id."""

    lm_head: Literal["auto", "exact"] = "auto"
    """How drafts read the LM head: ``auto`` (with eight bits where that pays) or ``exact``."""

    layers: Literal["auto"] | Annotated[tuple[int, ...], Field(min_length=1)] = "auto"
    """Hidden states that are joined, as transformers counts them: i is the input of layer i."""

    norm_before_residual: Literal["auto"] | bool = "auto"
    """Whether the layer's residual is the normed hidden state."""

    fc_norm: Literal["auto", "none", "joined", "each"] = "auto"
    """Norms in front of the FC: EAGLE-3.1 has one over all layers (``joined``) or one ``each``."""

    feed_back: Literal["auto", "before-norm", "after-norm"] = "auto"
    """Which of its outputs the head is fed: EAGLE-3.1 feeds what is behind its last norm."""

    draft_vocab_size: Annotated[int, Field(ge=1, le=2**26)] | None = None
    """Tokens that it drafts from; a new head's are the most frequent ones of the training text."""

    own_lm_head: bool = True
    """Whether a new head has an LM head of its own; else it reads the target's, over all tokens."""


class Eagle3Head(DecoderHead):
    """One layer over embeddings and hidden states; F = the joined layers', S = H."""

    module: Eagle3Module

    def __init__(self, config: Eagle3Config, context: BuildContext) -> None:
        self._settings, self._context = config, context
        self._counts: Tensor | None = None
        self._ids: Tensor | None = None
        self._embedding: Tensor | None = None
        self._made: Variant | None = None

    @cached_property  # to look for it may ask a server
    def folder(self) -> Path:
        """Where its checkpoint is; see `eagle.plugin.MeasuredHead`."""
        target = self._context.target.name if self._context.target else None
        return locate(self._settings.weights, target, self._context.folder, "eagle3")

    @property
    def identity(self) -> str:
        """What its checkpoint is; see `eagle.plugin.Identified`."""
        layout = self._read[1]
        return f"a draft head of EAGLE-3 in the layout of {layout.publisher}: {self._read[0]}"

    def export(self, engine: str, out: Path) -> str:
        """See `eagle.plugin.Exportable`."""
        assert self._context.target is not None
        return export_head(self.folder, engine, out, self._context.target, self._read[0])

    @cached_property
    def _read(self) -> tuple[Variant, Layout]:
        layout = identify(self.folder)
        layout.require("eagle3")
        variant, layout = read_variant(layout)
        return self._chosen(variant), layout

    def _chosen(self, variant: Variant) -> Variant:
        """Return a checkpoint's variant as the settings have it, where they may differ."""
        said = self._settings
        for name, ours, theirs in (
            ("fc_norm", said.fc_norm, variant.norms),
            ("draft_vocab_size", said.draft_vocab_size or "auto", variant.draft_vocab),
        ):
            if ours not in ("auto", theirs):
                raise CheckpointError(
                    f"head.{name}: {ours} is not what the draft head in {self.folder} has, {theirs}"
                )
        changes: dict[str, object] = {
            name: getattr(said, name)
            for name in ("layers", "norm_before_residual", "feed_back")
            if getattr(said, name) != "auto"
        }
        still = {name: text for name, text in variant.open.items() if name not in changes}
        variant = replace(variant, **changes, open=still)  # type: ignore[arg-type]
        if variant.layers and len(variant.layers) != variant.joined:
            raise CheckpointError(
                f"head.layers: {len(variant.layers)} layers are given, but the draft head in "
                f"{self.folder} joins {variant.joined}"
            )
        return variant

    def _variant(self, target: TargetInfo) -> Variant:
        """Return what this head is, or is going to be where it is yet to be made."""
        if self._made is not None:
            return self._made
        if not self._context.fresh:
            return self._read[0]
        layers = self._fresh_layers(target)
        return Variant(None, 0, True, target.hidden_size, len(layers), layers)

    def _fresh_layers(self, target: TargetInfo) -> tuple[int, ...]:
        given = self._settings.layers
        return low_middle_high(target.layers) if given == "auto" else given

    def feature_layers(self, target: TargetInfo) -> tuple[int, ...]:
        """See `eagle.plugin.NamesLayers`."""
        return self._variant(target).layers_of(target)

    def feature_size(self, target: TargetInfo) -> int:
        """Return the size of the joined layers, after comparing the checkpoint with the target.

        Raises:
            CheckpointError: it was made for another hidden size or vocabulary, or is a head of
                another kind.
        """
        variant = self._variant(target)
        sizes = [("target_hidden_size", variant.target_size, target.hidden_size)]
        if variant.config is not None:
            sizes.append(("vocab_size", variant.config.vocab_size, target.vocab_size))
        for key, theirs, ours in sizes:
            if theirs != ours:
                raise CheckpointError(
                    f"the draft head in {self.folder} has {key} {theirs}, the target "
                    f"{target.name!r} has {ours}; a head only works with the target it was trained "
                    "for"
                )
        return variant.joined * variant.target_size

    def state_size(self, target: TargetInfo) -> int:
        """Return H of the head: states are its own outputs."""
        config = self._variant(target).config
        return target.hidden_size if config is None else int(config.hidden_size)

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load the checkpoint in the target's dtype, on its device.

        Raises:
            CheckpointError: it is damaged, its tensors are not those of its configuration, its
                vocabulary's maps contradict themselves, or it was made for another target.
        """
        folder, (variant, layout) = self.folder, self._read
        with torch.device("meta"):
            module = _network(variant)
        tensors = read_weights(layout, module.state_dict(), apart=(EMBEDDING, *VOCABULARY_MAPS))
        ids = stored_vocabulary(layout, variant.draft_vocab, variant.config.vocab_size)
        embedding = own_embedding(layout, target, variant.config.hidden_size)
        check_verifier(layout, target)
        check_limit(layout, target)
        for sentence in variant.open.values():
            log.warning("the draft head in %s: %s", folder, sentence)
        tensors = {k: t.to(target.device, target.dtype) for k, t in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
        self._ids = None if ids is None else ids.to(target.device)
        if embedding is not None:
            embedding = embedding.to(target.device, target.dtype)
        self._embedding, self._made = embedding, variant
        self.adopt(module, variant.config, target)
        self.attend_by(attention, folder)

    def choose_vocabulary(self, counts: Tensor) -> None:
        """See `eagle.plugin.ChoosesVocabulary`."""
        self._counts = counts

    def initialise(self, target: TargetModel, seed: int) -> None:
        """See `eagle.plugin.TrainableHead`; without counts, it drafts from all tokens."""
        said, config = self._settings, fresh_config(target)
        vocab = target.info.vocab_size
        ids = None
        if said.own_lm_head and self._counts is not None:
            ids = most_frequent(self._counts, said.draft_vocab_size or _DRAFT_VOCAB)
        layers = self._fresh_layers(target.info)
        variant = Variant(
            config=config,
            draft_vocab=vocab if ids is None else len(ids),
            own_lm_head=said.own_lm_head,
            target_size=target.info.hidden_size,
            joined=len(layers),
            layers=layers,
            norms="none" if said.fc_norm == "auto" else said.fc_norm,
            norm_before_residual=said.norm_before_residual is True,
            feed_back="before-norm" if said.feed_back == "auto" else said.feed_back,
        )
        module = _network(variant)
        draw_weights(module, target, config, seed)
        self._ids = None if ids is None else ids.to(target.device)
        self._embedding, self._made = None, variant
        self.adopt(module.to(target.device), config, target)

    def adopt(self, module: Any, config: Any, target: TargetModel) -> None:
        """See `DecoderHead.adopt`."""
        super().adopt(module, config, target)
        self._rough: Int8Linear | None = None
        self._shared: Callable[[Tensor], Tensor] = target.logits

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """See `DecoderHead.allocate`; drafts may read the LM head with eight bits from now on."""
        super().allocate(slots, rows, pages)
        if self._settings.lm_head == "exact":
            return
        if self.module.lm_head is None:
            self._shared = self._target.draft_logits()
        elif self._rough is None:
            self._rough = int8_linear(self.module.lm_head)

    @property
    def draft_vocab(self) -> Tensor | None:
        """See `eagle.plugin.OwnVocabulary`."""
        return self._ids

    @property
    def embedding(self) -> Tensor | None:
        """The embedding of its own, ``[V, H]``; None where it reads the target's."""
        return self._embedding

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        hidden = self.module.fuse(committed.features)
        return self._state(self.over_cache(committed.step, self._embed(committed.tokens), hidden))

    def extend(self, drafted: Drafted) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`: the head's own output, without the FC."""
        embedded = self._embed(drafted.tokens)
        return self._state(self.over_cache(drafted.step, embedded, drafted.states))

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of its own LM head or the target's, ``[B, W, Vd]``."""
        if not self._normed:
            states = normed(self.module.norm, states)
        if self.module.lm_head is None:
            return self._shared(states.to(self._target.dtype))  # the norm is float32 in training
        rough = self._rough
        if rough is None or states.dtype != self._target.dtype or not rough.serves(states):
            out: Tensor = self.module.lm_head(states)
            return out
        return rough(states)

    def train_states(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Sequence[Tensor],
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """See `eagle.plugin.TrainableHead.train_states`."""
        true, *fed_back = features
        hidden = self.module.fuse(true)
        if fed_back:
            hidden = torch.cat((hidden, *(one.to(hidden.dtype) for one in fed_back)), dim=1)
        return self._state(self.in_parallel(positions, visible, self._embed(tokens), hidden))

    def feed_back(self, states: Tensor) -> Tensor:
        """Return the states: they are what it is fed."""
        return states

    @property
    def _normed(self) -> bool:
        return self._made is not None and self._made.feed_back == "after-norm"

    def _state(self, out: Tensor) -> Tensor:
        return normed(self.module.norm, out) if self._normed else out

    def _embed(self, tokens: Tensor) -> Tensor:
        if self._embedding is None:
            return self._target.embed(tokens)
        return F.embedding(tokens, self._embedding)

    def save(self, folder: Path) -> None:
        """Write the authors' layout in bfloat16, with all that other layouts leave open."""
        variant, target = self._made, self._target.info
        assert variant is not None
        config = variant_config(variant, variant.layers_of(target))
        if self._embedding is not None:
            config["embed_requires_grad"] = True
        tensors = self.saved_weights()
        if self._embedding is not None:
            tensors[EMBEDDING] = self._embedding.to(torch.bfloat16, copy=True)
        if self._ids is not None:
            tensors |= maps_of(self._ids, target.vocab_size)
        write_checkpoint(folder, config, tensors)


def _network(variant: Variant) -> Eagle3Module:
    return Eagle3Module(
        variant.config,
        target_size=variant.target_size,
        joined=variant.joined,
        draft_vocab=variant.draft_vocab if variant.own_lm_head else None,
        norms=variant.norms,
        norm_before_residual=variant.norm_before_residual,
    )
