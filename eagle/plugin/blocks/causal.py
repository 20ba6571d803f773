"""A draft head that is a causal language model of its own; knows its passes, not what it is.

The classical draft model of speculative decoding (arXiv 2211.17192, 2302.01318).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.errors import reason
from eagle.plugin import (
    AttentionBackend,
    CheckpointError,
    Committed,
    Drafted,
    LanguageModel,
    Pages,
    Step,
    TargetError,
    TargetInfo,
    TargetModel,
)

__all__ = ["CausalDrafter"]


class CausalDrafter:
    """Drafts with a transformers model that has the target's tokens; it looks at no features.

    Its states are the model's last hidden states, its cache is the model's own, and row p of it is
    token p's, from token 0 on. Where the vocabularies differ in size, as padded ones do, what the
    model has beyond the target's is left out, and what it lacks is never proposed.

    Args:
        folder: of the model's files.
    """

    capturable = True

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def feature_size(self, target: TargetInfo) -> int:
        """Return H: the target's last hidden states, which cost nothing, are let pass.

        Raises:
            CheckpointError: there is no such model.
        """
        if not (self.path / "config.json").is_file():
            raise CheckpointError(
                f"there is no draft model in {self.path}: its folder should hold a config.json and "
                "weights, as transformers' save_pretrained writes them"
            )
        return target.hidden_size

    def state_size(self, target: TargetInfo) -> int:
        """Return the hidden size of the model."""
        from transformers import AutoConfig

        self.feature_size(target)
        try:
            size: int = AutoConfig.from_pretrained(self.path).get_text_config().hidden_size
        except Exception as error:  # transformers raises many kinds here, all meaning the same
            raise CheckpointError(
                f"the configuration of the draft model in {self.path} cannot be read: "
                f"{reason(error)}"
            ) from error
        return size

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load the model on the target's device, in its dtype.

        Raises:
            CheckpointError: it cannot be served, or its tokens are not the target's.
        """
        self.feature_size(target.info)
        try:
            model = target.draft_model(self.path, attention)
        except TargetError as error:
            raise CheckpointError(f"the draft model is of no use: {error}") from error
        self.adopt(model, target.info.vocab_size, attention)

    def adopt(self, model: LanguageModel, vocab: int, attention: AttentionBackend) -> None:
        """Draft with a model that is loaded already.

        Args:
            model: the model.
            vocab: V, the target's.
            attention: what to attend through.

        Raises:
            CheckpointError: its layers see less than the whole text.
        """
        if any(window is not None for window in model.windows):
            raise CheckpointError(
                f"the draft model {model.info.name!r} has layers with sliding windows, which "
                "cannot be shown a tree level by level; use one whose layers see the whole text"
            )
        self._model, self._vocab, self._attention = model, vocab, attention
        self._logits: Callable[[Tensor], Tensor] = model.logits

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate the model's cache: one row more, since it has token 0 too."""
        self._cache: Any = self._model.make_cache(slots, rows + 1)
        self._logits = self._model.draft_logits()

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`.

        A pass begins with its first entry's own token, which only at the start of a text is not in
        the cache yet; writing it again changes nothing.
        """
        step, width = committed.step, committed.tokens.shape[1]
        chain = Step.chain(step.lengths, width + 1, step.span + 1, step.slot)
        tokens = torch.cat((committed.own[:, :1], committed.tokens), dim=1)
        return self._pass(tokens, chain)[:, 1:]

    def extend(self, drafted: Drafted) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`; what predicted the tokens is in the cache."""
        step = drafted.step
        behind = replace(
            step,
            positions=step.positions + 1,
            rows=step.rows + 1,
            lengths=step.lengths + 1,
            span=step.span + 1,
        )
        return self._pass(drafted.tokens, behind)

    def logits(self, states: Tensor) -> Tensor:
        """Return the model's logits, as many as the target has tokens: -inf for what it lacks."""
        found = self._logits(states)
        lacking = self._vocab - found.shape[-1]
        return found if lacking == 0 else F.pad(found, (0, lacking), value=float("-inf"))

    def _pass(self, tokens: Tensor, step: Step) -> Tensor:
        known = tokens.clamp(max=self._model.embeddings - 1)
        return self._model.forward(known, step, self._cache, self._attention)[0]
