"""What a training spec may say; trains nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from eagle.spec import ComponentSpec, DecoderSpec, Document, TargetSpec

__all__ = [
    "DEEPEST",
    "DataSpec",
    "EvaluationSpec",
    "LossSpec",
    "NoiseSpec",
    "OptimizerSpec",
    "SourceSpec",
    "TrainSpec",
]


def _a_path(name: str) -> str:
    """Refuse a name that no file can have, whether there is one or not."""
    reason = None
    try:
        os.stat(Path(name).expanduser())
    except OSError as error:
        reason = error.strerror if error.errno in (errno.ENAMETOOLONG, errno.EINVAL) else None
    except (ValueError, RuntimeError) as error:  # no text of a name, and nobody's home
        reason = str(error)
    if reason is None and any(character < " " for character in name):
        reason = "control characters"
    if reason:
        raise ValueError(f"should be the path of a file or folder: {reason}")
    return name


FileName = Annotated[str, Field(min_length=1), AfterValidator(_a_path)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Rows = Annotated[int, Field(ge=1, le=2**14)]
"""What is in memory at once: more is a slip of the pen, and would be built before it fails."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e38)]  # what float32 holds
Positive = Annotated[float, Field(gt=0, le=1e38)]

DEEPEST = 32
"""Levels that rank replay measures: a head's training pass lays out that many copies of a text."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Model):
    """Where conversations, or plain texts, come from.

    Attributes:
        path: a file, a folder of files, the name of an embedded dataset (`sharegpt`), or the id
            ``OWNER/NAME`` of a dataset on the Hugging Face Hub.
        format: ``sharegpt`` (a JSON list of ``{"conversations": [{"from", "value"}]}``),
            ``messages`` (a JSON object ``{"messages": [{"role", "content"}]}`` on each line),
            ``text`` (a file that is one text, or ``{"text": "..."}`` on each line or in each row),
            ``dataset`` (parquet, arrow or JSON lines, as `datasets` keeps them, or a Hub id), or
            ``auto``: by suffix and by what a record holds.
        split: of a dataset: which part, by default ``train`` where it has parts.
        subset: of a dataset on the Hub: which of its configurations.
        revision: of a dataset on the Hub.
    """

    path: FileName
    format: Literal["auto", "sharegpt", "messages", "text", "dataset"] = "auto"
    split: str | None = None
    subset: str | None = None
    revision: str | None = None


class DataSpec(_Model):
    """The training text.

    Attributes:
        sources: read in order.
        packed: file of the tokenised text, made by ``eagle data prepare``; used instead of the
            sources, so that they need not be at hand.
        limit: at most this many conversations, for trials.
        max_length: longest conversation in tokens; what is behind is cut.
        length: tokens of a packed row. Attention never crosses from one conversation to another.
        repack: cut the rows anew in every epoch, or once, each epoch having them in an order of
            its own. By default anew, but for cached features, which belong to rows.
        features: of the target: computed ``on-the-fly`` in every step, or ``cached``: once for
            every row, in files that are read from then on.
        cache: folder of cached features; by default ``features`` in the run's folder. Runs with
            the same target and text may share one.
        cache_limit: GiB that cached features may take; a run that needs more is refused.
        heldout: share of conversations that is never trained on.
        seed: of the held-out choice and of the order of the conversations.
    """

    sources: tuple[SourceSpec, ...] = (SourceSpec(path="sharegpt"),)
    packed: FileName | None = None
    limit: Count | None = None
    max_length: Count = 8192
    length: Annotated[int, Field(ge=4, le=2**24)] = 1024
    repack: bool | None = None
    features: Literal["on-the-fly", "cached"] = "on-the-fly"
    cache: FileName | None = None
    cache_limit: Positive = 64.0
    heldout: Share = 0.01
    seed: Seed = 0

    @property
    def repacked(self) -> bool:
        """Whether rows are cut anew in every epoch."""
        return self.features == "on-the-fly" if self.repack is None else self.repack

    @model_validator(mode="after")
    def _cached_rows_stay(self) -> DataSpec:
        if self.repack and self.features == "cached":
            raise ValueError(
                "repack should be false with cached features, which belong to rows that stay"
            )
        return self


class LossSpec(BaseModel):
    """What is minimised: a strategy by name, with its settings beside those of every loss.

    Attributes:
        name: the strategy (`eagle.plugin.TrainingLoss`).
        levels: how many levels deep the head drafts from its own predictions in training. 1, the
            paper's, feeds it true features only; more is the multi-step training of HASS (arXiv
            2408.15766) and of EAGLE-3's training-time test (arXiv 2503.01840).
        through: let a level's gradient flow through what it was fed, as EAGLE-3's authors do;
            otherwise it stops there, as in HASS. More levels cost more time with it.
        level_decay: weight of each level relative to the one above it. The total is the weighted
            mean over levels, so that its size does not depend on their number.
        chunk: positions whose logits are in memory at once, each level's and the target's.
        recompute: make each chunk's logits again for the backward pass instead of keeping them:
            less memory, about a quarter more time.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(min_length=1)] = "eagle"
    levels: Annotated[int, Field(ge=1, le=16)] = 1
    through: bool = False
    level_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    chunk: Annotated[int, Field(ge=1, le=2**24)] = 2048
    recompute: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def strategy(self) -> ComponentSpec:
        """The strategy with its own settings, as they were written."""
        return ComponentSpec.model_validate({"name": self.name, **(self.model_extra or {})})

    @property
    def shares(self) -> tuple[float, ...]:
        """How much each level counts; they add up to 1."""
        weights = [self.level_decay**level for level in range(self.levels)]
        return tuple(weight / sum(weights) for weight in weights)


class NoiseSpec(_Model):
    """Noise on the input features, so that the head learns to live with its own errors.

    Attributes:
        uniform: amplitude a of the noise, drawn from U(-a, a).
        scaling: ``none``, or ``length``: times 512 / (tokens of the text), as the reference
            implementation does; a text that is cut in two by the end of a row counts as two.
    """

    uniform: Weight = 0.1
    scaling: Literal["none", "length"] = "none"


class OptimizerSpec(_Model):
    """AdamW, with a warm-up and a decay of the learning rate.

    Attributes:
        lr: the highest learning rate.
        betas: decay rates of the moments.
        weight_decay: of matrices; norms and biases have none.
        warmup: share of the run in which the rate rises.
        schedule: how it falls afterwards.
        final: share of `lr` that it falls to.
        seconds: end the run, and the decay of the rate with it, after so many seconds of
            training, evaluations not counted, where the steps would take longer. Such a run
            depends on the clock, and cannot be repeated exactly.
        clip_norm: largest norm of the gradient, or null.
        clip_value: largest absolute value of a gradient's element, or null.
        ema: decay of an exponential moving average of the weights, 0.999 say, or null. Where there
            is one, it is what is measured and saved.
    """

    lr: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Weight = 0.0
    warmup: Share = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: Share = 0.02
    seconds: Positive | None = None
    clip_norm: Positive | None = 0.5
    clip_value: Positive | None = None
    ema: Share | None = None


class EvaluationSpec(_Model):
    """Measured as it will be used: tau and n-alpha by rank replay, on answers of the target.

    Attributes:
        every: steps between evaluations; one is always made at the end. Null: only that one.
        heldout: how many first turns of held-out conversations are prompts.
        prompts: further prompts: JSON lines with ``{"turns": [...]}``, the first turn of each, by
            a name for messages. They are measured on and never trained on.
        limit: at most this many prompts of each file.
        max_prompt: longest prompt in tokens; longer ones are left out, and counted.
        max_new_tokens: length of an answer.
        trees: tree builders whose tau is measured; they must be fixed in shape. The first one's
            tau chooses the best head.
        chain: levels of the chain on which n-alpha is measured. Memory grows with its square,
            as with that of the trees' depth.
        batch: prompts that are answered at once.
    """

    every: Count | None = 1000
    heldout: Annotated[int, Field(ge=0, le=2**40)] = 32
    prompts: dict[str, FileName] = {}
    limit: Count = 80
    max_prompt: Count = 1024
    max_new_tokens: Annotated[int, Field(ge=2, le=2**24)] = 128
    trees: Annotated[tuple[ComponentSpec, ...], Field(min_length=1)] = (
        ComponentSpec.model_validate({"name": "static", "tree": "reference-25"}),
    )
    chain: Annotated[int, Field(ge=1, le=DEEPEST)] = 5
    batch: Rows = 32


class TrainSpec(_Model):
    """Everything about one training run; `load_train_spec` reads one from YAML.

    Attributes:
        target: the frozen target. In bfloat16, the head's products are too; its weights, and all
            that is summed up over steps, stay float32.
        features: the feature extractor.
        head: the draft head.
        start: ``fresh`` weights, or those of the ``checkpoint`` that the head's settings name.
        steps: optimizer steps. Null: as many as `epochs` has.
        epochs: passes over the training text.
        batch: rows that a process takes at once.
        accumulate: batches whose gradients are added up for one step; the loss is the mean over
            all entries of a step, so this, `batch` and the number of processes can make up for
            each other.
        sharding: ``fsdp`` cuts the head's weights, gradients, moments and moving average over the
            processes that train together, for a head that is too large for each of them to have
            all that (FSDP); with one process there is nothing to cut.
        compile: compile target, head and loss; ``auto``: on CUDA, where the target is on one
            device.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints; one is always made at the end.
        max_seconds: end this process's training after so long, as if all steps were done, but so
            that it can be resumed.
        tensorboard: write the log for TensorBoard too; ``auto``: where it is installed.
        seed: of weights and noise.
        output: folder of the run.
    """

    target: TargetSpec = TargetSpec()
    features: ComponentSpec = ComponentSpec(name="last-hidden")
    head: ComponentSpec = ComponentSpec(name="eagle")
    start: Literal["fresh", "checkpoint"] = "fresh"
    data: DataSpec = DataSpec()
    loss: LossSpec = LossSpec()
    noise: NoiseSpec = NoiseSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    steps: Count | None = None
    epochs: Positive = 3.0
    batch: Rows = 16
    accumulate: Rows = 1
    sharding: Literal["none", "fsdp"] = "none"
    compile: bool | Literal["auto"] = "auto"
    log_every: Count = 10
    save_every: Count = 500
    max_seconds: Positive | None = None
    tensorboard: bool | Literal["auto"] = "auto"
    seed: Seed = 0
    output: FileName = "runs/eagle"

    _document: Document = PrivateAttr(default_factory=lambda: Document("training spec"))

    @model_validator(mode="after")
    def _spread_targets_are_served(self) -> TrainSpec:
        if self.target.spread and self.compile is True:
            raise ValueError(
                "compile should be auto or false: a target on several devices is not compiled"
            )
        if self.target.tp_plan and self.data.features == "cached":
            raise ValueError(
                "data.features should be on-the-fly with target.tp_plan: one process writes cached "
                "features, and none can run such a target alone; target.device_map has one process"
            )
        return self

    @property
    def document(self) -> Document:
        """Where the spec was written, for messages."""
        return self._document

    @property
    def decoder(self) -> DecoderSpec:
        """The decoder spec that the trained parts are resolved as."""
        return self.decoder_with(ComponentSpec(name="none"))

    def decoder_with(self, tree: ComponentSpec) -> DecoderSpec:
        """Return that decoder spec with one of the trees that are measured."""
        # Its parts are resolved only, never decoded with, wherever the target's layers are.
        alone = {"device_map": None, "tp_plan": None, "cut_draft": "auto"}
        target = self.target.model_copy(update=alone)
        spec = DecoderSpec(target=target, features=self.features, head=self.head, tree=tree)
        spec._document = self._document
        return spec

    def path(self, name: str) -> Path:
        """Return the path of a file that the spec names.

        A relative one starts at the spec's folder or, where there is no such file, where the user
        stands: that is what is meant by one given with ``--set``.
        """
        path = self._document.folder / Path(name).expanduser()
        return path if path.exists() else Path(name).expanduser()

    def rows(self, shares: int = 1) -> int:
        """Return the rows of a step that so many processes, or groups of them, share."""
        return self.batch * self.accumulate * shares

    def identity(
        self, shares: int = 1, loss: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Return what a resumed run must share with the one it goes on from.

        Args:
            shares: see `rows`. Their number may change where a step's rows do not.
            loss: the settings of the loss's strategy, its defaults among them.
        """
        fixed = ("target", "features", "head", "start", "data", "loss", "noise", "batch", "seed")
        dumped = self.model_dump(mode="json", include=set(fixed))
        # Where the text lies may change between machines; what it holds is compared by digest.
        dumped["data"] = {k: dumped["data"][k] for k in ("length", "heldout", "seed")}
        dumped["data"]["repack"] = self.data.repacked
        dumped["target"] = {"model": Path(self.target.model).name}
        dumped["batch"] = self.rows(shares)
        dumped["loss"] |= loss
        for key in ("chunk", "recompute"):
            del dumped["loss"][key]
        if not self.loss.through:  # likewise, of before there was a choice
            del dumped["loss"]["through"]
        if self.loss.name == LossSpec().name:  # checkpoints of before losses had names
            del dumped["loss"]["name"]
        return dumped
