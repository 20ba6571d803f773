"""What a draft head may use of models: the face of its target, and of a model that it runs itself.

It knows neither of them, nor transformers. B slots, N entries, V vocabulary and H hidden size of
the model in question.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from eagle.cache import Step
from eagle.plugin.strategy import TargetInfo

if TYPE_CHECKING:
    from eagle.plugin.roles import AttentionBackend

__all__ = ["LanguageModel", "TargetModel"]


class TargetModel(Protocol):
    """The part of the target that draft heads use: all that they are given of it, and frozen.

    The transformers model behind it is not part of the contract, nor is its tokenizer: what a
    head computes with them could change what the target says, or wait for the host in a cycle.

    Attributes:
        info: its sizes and its name.
        device: where features and tokens come from, and where states and logits belong.
        dtype: of its weights and of the features.
        config: its (text) configuration, as transformers has it, to shape new heads after.
    """

    info: TargetInfo
    device: torch.device
    dtype: torch.dtype
    config: Any

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the frozen input embeddings ``[B, N, H]`` of int64 tokens ``[B, N]``."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """Return the frozen LM head's logits ``[B, N, V]`` for final hidden states [B, N, H].

        Scaled and capped as the target's own. Gradients flow through it to the features.
        """
        ...

    def draft_logits(self) -> Callable[[Tensor], Tensor]:
        """Return what gives `logits` as well as drafts need them, and sooner; no gradients.

        To be asked for once, in `DraftHead.allocate`, which training does not call. A candidate
        that is a little off costs acceptance and no exactness.
        """
        ...

    def lay_out(self, network: nn.Module) -> bool:
        """Lay out the weights of a head's network for decoding, in place; training is over then.

        Layers that read the same input are stacked, and weights packed, as it pays on the device.
        Where several processes hold the target, modules with a ``tp_plan`` are cut over them (see
        `LlamaAttention.tp_plan`): so before sizes are taken from the network. To be asked for in
        `DraftHead.allocate`, in which it may come again for the same network.

        Returns:
            Whether this process has a part of the network only, which is not to be saved.
        """
        ...

    def draft_model(self, folder: Path, attention: AttentionBackend) -> LanguageModel:
        """Load another causal language model, on this one's device and in its dtype.

        `eagle.plugin.CausalDrafter` is a head that drafts with one.

        Args:
            folder: of its files, as transformers has them; no code in it is run.
            attention: what its passes will attend through; they are tried once.

        Raises:
            TargetError: it cannot be loaded, or not be run over a tree cache; or its tokens are not
                this one's.
        """
        ...


class LanguageModel(TargetModel, Protocol):
    """A model of which whole passes are run, over a cache of its caller's."""

    @property
    def embeddings(self) -> int:
        """Rows of its input embedding: token ids are below it."""
        ...

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How far back its layers see, each or all of them alike; None: to the text's start.

        Passes of a model with windows need one row of the tail for each entry (`Step.tail`).
        """
        ...

    def make_cache(self, slots: int, rows: int) -> Any:
        """Allocate a cache of *rows* rows for each of *slots* texts."""
        ...

    def forward(
        self, tokens: Tensor, step: Step, cache: Any, attention: AttentionBackend
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one pass over a cache.

        Args:
            tokens: int64 ``[B, N]``.
            step: where they go and what each sees.
            cache: of `make_cache`.
            attention: the backend to attend through.

        Returns:
            The LM head's input ``[B, N, H]``, and an empty list.
        """
        ...
