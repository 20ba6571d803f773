"""Medusa (arXiv 2401.10774): a few heads on the target's last hidden state, one for each level.

Head i says what comes i + 1 tokens behind the root, from the feature in front of the root alone: it
does not know the root. Knows the published layout; no attention and no cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from eagle.plugin import (
    AttentionBackend,
    BuildContext,
    CheckpointError,
    Committed,
    Drafted,
    HeadFiles,
    IncompatibleError,
    Int8Linear,
    Pages,
    Step,
    StrategyConfig,
    TargetInfo,
    TargetModel,
    check_verifier,
    find_checkpoint,
    int8_linear,
    read_weights,
    write_checkpoint,
)
from eagle_strategies.drafters.medusa_network import MedusaNetwork

__all__ = ["MedusaConfig", "MedusaHead"]

_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
_PREFIX = "medusa_head."
_BLOCK = re.compile(r"0\.(\d+)\.linear\.weight")


class MedusaConfig(StrategyConfig):
    """Settings of the `medusa` head; `heads` and `blocks` are of one that is made for training."""

    weights: str = "auto"
    """Checkpoint: a folder, or a Hub id."""

    lm_head: Literal["auto", "exact"] = "auto"
    """How drafts read the LM heads: ``auto`` (with eight bits where that pays) or ``exact``."""

    heads: Annotated[int, Field(ge=1, le=16)] = 5
    """K, the deepest level that it drafts; the authors' have 5."""
    blocks: Annotated[int, Field(ge=1, le=8)] = 1
    """Residual blocks in front of each LM head. The authors' have 1."""
    own_lm_head: bool = True
    """Whether each has an LM head of its own, as the authors' have; else they read the target's,
    which is frozen, and a checkpoint holds the blocks alone."""


class MedusaHead:
    """K heads in one pass; F = S = H. It remembers nothing of a text."""

    capturable = True
    paged = True
    module: MedusaNetwork

    def __init__(self, config: MedusaConfig, context: BuildContext) -> None:
        self._settings, self._context = config, context

    @cached_property  # to look for it may ask a server
    def folder(self) -> Path:
        """Where its checkpoint is; see `eagle.plugin.MeasuredHead`."""
        if self._settings.weights == "auto":
            raise CheckpointError(
                "no Medusa heads are shipped; give their folder or Hub id as head.weights, or "
                "train some with `eagle train medusa`"
            )
        return find_checkpoint(self._settings.weights, self._context.folder, _FILES)

    @cached_property
    def _read(self) -> tuple[HeadFiles, int, int]:
        """Return the folder, the number of heads, and that of each one's blocks."""
        files = HeadFiles.read(self.folder, (*_FILES, "model.safetensors", "pytorch_model.bin"))
        folder = files.folder
        if any(name.startswith(("model.layers.", "lm_head.")) for name in files.tensors):
            raise CheckpointError(
                f"{folder} is a whole model with Medusa heads, whose layers were trained with them "
                "(Medusa-2); save its heads alone (medusa_lm_head.pt), and the rest as target.model"
            )
        named = {name.removeprefix(_PREFIX): one for name, one in files.tensors.items()}
        blocks = sum(1 for name in named if _BLOCK.fullmatch(name))
        heads = len({name.partition(".")[0] for name in named})
        shared = files.config.get("own_lm_head") is False and f"0.{blocks}.weight" not in named
        if not blocks or not (shared or f"0.{blocks}.weight" in named):
            raise CheckpointError(
                f"{folder} holds no Medusa heads: there is no 0.0.linear.weight with an LM head "
                "0.1.weight behind it"
            )
        # The authors' configurations say 2 heads where files have 5: more than said is no mistake.
        for key, found, fits in (
            ("medusa_num_heads", heads, heads.__ge__),
            ("medusa_num_layers", blocks, blocks.__eq__),
        ):
            said = files.config.get(key)
            if said is not None and not (type(said) is int and fits(said)):
                raise CheckpointError(
                    f"{folder / 'config.json'}: {key} is {said!r:.40}, but its weights have {found}"
                )
        return HeadFiles(folder, files.config, named), heads, blocks

    @property
    def identity(self) -> str:
        """What its checkpoint is; see `eagle.plugin.Identified`."""
        files, heads, blocks = self._read
        name = files.config.get("base_model_name_or_path")
        made = f", made for {name!r:.80}" if name else ""
        count = "one residual block" if blocks == 1 else f"{blocks} residual blocks"
        own = f"0.{blocks}.weight" in files.tensors
        read = "" if own else ", read by the target's LM head"
        return f"{heads} Medusa heads of {count}{read}{made}"

    def feature_size(self, target: TargetInfo) -> int:
        """Return H, after comparing the checkpoint's sizes with the target's.

        Raises:
            CheckpointError: it was made for another hidden size or vocabulary.
        """
        if not self._context.fresh:
            files, _, blocks = self._read
            end = files.tensors.get(f"0.{blocks}.weight")
            if end is None:  # of the blocks alone
                end = files.tensors["0.0.linear.weight"]
                vocab, size = files.config.get("vocab_size"), (*end.shape, 0)[0]
            else:
                vocab, size = (*end.shape, 0, 0)[:2]
            if (vocab, size) != (target.vocab_size, target.hidden_size):
                raise CheckpointError(
                    f"the Medusa heads in {files.folder} have a hidden size of {size} and a "
                    f"vocabulary of {vocab}, the target {target.name!r} has {target.hidden_size} "
                    f"and {target.vocab_size}; heads only work with the target they were trained "
                    "for"
                )
        return target.hidden_size

    def deepest_level(self) -> int:
        """Return K; see `eagle.plugin.LimitedDepth`."""
        return self._settings.heads if self._context.fresh else self._read[1]

    def state_size(self, target: TargetInfo) -> int:
        """Return H: a state is the feature."""
        return target.hidden_size

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load the checkpoint in the target's dtype, on its device.

        Raises:
            CheckpointError: it is damaged, or its tensors are not those of its heads.
        """
        files, heads, blocks = self._read
        own = f"0.{blocks}.weight" in files.tensors
        size, vocab = target.info.hidden_size, target.info.vocab_size
        with torch.device("meta"):
            module = MedusaNetwork(heads, blocks, size, vocab if own else None)
        tensors = read_weights(files, module.state_dict(), apart=())
        check_verifier(files, target)
        tensors = {k: t.to(target.device, target.dtype) for k, t in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
        self._adopt(module, target)

    def _adopt(self, module: MedusaNetwork, target: TargetModel) -> None:
        self.module, self._target = module, target
        self._rough: list[Int8Linear | None] = [None] * len(module)
        self._shared: Callable[[Tensor], Tensor] = target.logits

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate nothing; drafts may read the LM heads with eight bits from now on."""
        if self._settings.lm_head == "exact":
            return
        if self.module.shared:
            self._shared = self._target.draft_logits()
        elif self._rough[0] is None:
            self._rough = [int8_linear(self.module.end(i)) for i in range(len(self.module))]

    def absorb(self, committed: Committed) -> Tensor:
        """Return the features: they are all that heads look at."""
        return committed.features

    def draft(self, tokens: Tensor, states: Tensor, step: Step) -> Tensor:
        """See `eagle.plugin.ParallelHead.draft`.

        Raises:
            IncompatibleError: the tree is deeper than there are heads.
        """
        levels = step.rows.shape[1]
        self._check(levels)
        hidden = [self.module.hidden(level, states[:, None]) for level in range(levels)]
        if self.module.shared:
            return self.level_logits(torch.cat(hidden, dim=1), 0)
        return torch.cat([self.level_logits(x, level) for level, x in enumerate(hidden)], dim=1)

    def _check(self, levels: int) -> None:
        if levels > len(self.module):
            raise IncompatibleError(
                f"{levels} levels are to be drafted, but there are {len(self.module)} Medusa "
                "heads, one for each level: use a tree that is less deep, or train more heads"
            )

    def extend(self, drafted: Drafted) -> Tensor:
        """Do not: nothing is drafted level by level."""
        raise NotImplementedError("Medusa heads draft all levels in one pass")

    def logits(self, states: Tensor) -> Tensor:
        """Return what the first head says of features."""
        return self.level_logits(self.module.hidden(0, states), 0)

    def level_logits(self, states: Tensor, level: int) -> Tensor:
        """See `eagle.plugin.TrainsLevels.level_logits`."""
        if self.module.shared:
            return self._shared(states.to(self._target.dtype))  # of float32 blocks in training
        rough = self._rough[level]
        if rough is None or states.dtype != self._target.dtype or not rough.serves(states):
            out: Tensor = self.module.end(level)(states)
            return out
        return rough(states)

    def initialise(self, target: TargetModel, seed: int) -> None:
        """See `eagle.plugin.TrainableHead`; each head begins as the target's own LM head.

        So the paper has it (section 2.2.1). The LM head is found by what it makes of unit vectors.
        """
        size, vocab = target.info.hidden_size, target.info.vocab_size
        own = self._settings.own_lm_head
        module = MedusaNetwork(
            self._settings.heads, self._settings.blocks, size, vocab if own else None
        )
        with torch.no_grad():
            for level in range(len(module)):
                for block in module.of(level):
                    block.linear.weight.zero_()
                    block.linear.bias.zero_()
            if own:
                units = torch.eye(size, device=target.device, dtype=target.dtype)[None]
                rows = (target.logits(units) - target.logits(torch.zeros_like(units[:, :1])))[0]
                for level in range(len(module)):
                    module.end(level).weight.copy_(rows.T.float())
        self._adopt(module.to(target.device), target)

    def train_levels(
        self,
        tokens: Tensor,
        own: Tensor,
        features: Tensor,
        positions: Tensor,
        visible: Tensor,
        levels: int,
    ) -> Sequence[Tensor]:
        """See `eagle.plugin.TrainsLevels.train_levels`: level d looks at the feature d back."""
        self._check(levels)
        length = features.shape[1]
        states = []
        for level in range(levels):
            back = min(level, length)
            moved = F.pad(features[:, : length - back], (0, 0, back, 0))
            states.append(self.module.hidden(level, moved))
        return states

    def save(self, folder: Path) -> None:
        """Write the published layout in bfloat16: ``config.json`` and ``medusa_lm_head``."""
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "medusa_num_heads": len(self.module),
            "medusa_num_layers": self.module.blocks,
            "hidden_size": self._target.info.hidden_size,
            "vocab_size": self._target.info.vocab_size,
            "base_model_name_or_path": self._target.info.name,
            "dtype": "bfloat16",
        }
        if self.module.shared:
            config["own_lm_head"] = False
        tensors = {
            k: t.detach().to(torch.bfloat16, copy=True) for k, t in self.module.state_dict().items()
        }
        write_checkpoint(folder, config, tensors, _FILES[0])
