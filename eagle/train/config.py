"""What a training spec may say; trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from eagle.document import Document
from eagle.errors import SpecError, nearest
from eagle.spec import ComponentSpec, DecoderSpec, TargetSpec

__all__ = [
    "DataSpec",
    "EvaluationSpec",
    "LossSpec",
    "NoiseSpec",
    "OptimizerSpec",
    "SourceSpec",
    "TrainSpec",
    "load_train_spec",
    "shipped_train_specs",
]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Model):
    """Where conversations come from.

    Attributes:
        path: a file, or the name of an embedded dataset (`sharegpt`).
        format: ``sharegpt`` (a JSON list of ``{"conversations": [{"from", "value"}]}``),
            ``messages`` (a JSON object ``{"messages": [{"role", "content"}]}`` on each line), or
            ``auto``: by the file's suffix.
    """

    path: Annotated[str, Field(min_length=1)]
    format: Literal["auto", "sharegpt", "messages"] = "auto"


class DataSpec(_Model):
    """The training text.

    Attributes:
        sources: read in order.
        packed: file of the tokenised text, made by ``eagle data prepare``; used instead of the
            sources, so that they need not be at hand.
        limit: at most this many conversations, for trials.
        max_length: longest conversation in tokens; what is behind is cut.
        length: tokens of a packed row. Attention never crosses from one conversation to another.
        heldout: share of conversations that is never trained on.
        seed: of the held-out choice and of the order of the conversations.
    """

    sources: tuple[SourceSpec, ...] = (SourceSpec(path="sharegpt"),)
    packed: str | None = None
    limit: Count | None = None
    max_length: Count = 8192
    length: Annotated[int, Field(ge=4)] = 1024
    heldout: Share = 0.01
    seed: Seed = 0


class LossSpec(_Model):
    """``feature * SmoothL1(f̂, f) + token * CE(softmax(LMhead f), softmax(LMhead f̂))``.

    Attributes:
        feature: weight of the regression loss (arXiv 2401.15077, section 3.2: 1).
        token: weight of the classification loss (the same: 0.1).
        chunk: positions whose logits are in memory at once.
        recompute: make each chunk's logits again for the backward pass instead of keeping them:
            less memory, about a quarter more time.
    """

    feature: Weight = 1.0
    token: Weight = 0.1
    chunk: Count = 2048
    recompute: bool = True

    @model_validator(mode="after")
    def _something_is_learned(self) -> LossSpec:
        if self.feature == self.token == 0:
            raise ValueError("feature and token should not both be 0")
        return self


class NoiseSpec(_Model):
    """Noise on the input features, so that the head learns to live with its own errors.

    Attributes:
        uniform: amplitude a of the noise, drawn from U(-a, a).
        scaling: ``none``, or ``length``: times 512 / (length of the row), as the reference
            implementation does.
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
        chain: levels of the chain on which n-alpha is measured.
        batch: prompts that are answered at once.
    """

    every: Count | None = 1000
    heldout: Annotated[int, Field(ge=0)] = 32
    prompts: dict[str, str] = {}
    limit: Count = 80
    max_prompt: Count = 1024
    max_new_tokens: Annotated[int, Field(ge=2)] = 128
    trees: Annotated[tuple[ComponentSpec, ...], Field(min_length=1)] = (
        ComponentSpec.model_validate({"name": "static", "tree": "reference-25"}),
    )
    chain: Count = 5
    batch: Count = 32


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
        batch: rows in a step.
        compile: compile target, head and loss; ``auto``: on CUDA.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints; one is always made at the end.
        max_seconds: end this process's training after so long, as if all steps were done, but so
            that it can be resumed.
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
    batch: Count = 16
    compile: bool | Literal["auto"] = "auto"
    log_every: Count = 10
    save_every: Count = 500
    max_seconds: Positive | None = None
    seed: Seed = 0
    output: Annotated[str, Field(min_length=1)] = "runs/eagle"

    _document: Document = PrivateAttr(default_factory=lambda: Document("training spec"))

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
        spec = DecoderSpec(target=self.target, features=self.features, head=self.head, tree=tree)
        spec._document = self._document
        return spec

    def path(self, name: str) -> Path:
        """Return the path of a file that the spec names.

        A relative one starts at the spec's folder or, where there is no such file, where the user
        stands: that is what is meant by one given with ``--set``.
        """
        path = self._document.folder / Path(name).expanduser()
        return path if path.exists() else Path(name).expanduser()

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share with the one it goes on from."""
        fixed = ("target", "features", "head", "start", "data", "loss", "noise", "batch", "seed")
        dumped = self.model_dump(mode="json", include=set(fixed))
        # Where the text lies may change between machines; what it holds is compared by digest.
        dumped["data"] = {k: dumped["data"][k] for k in ("length", "seed")}
        dumped["target"] = {"model": Path(self.target.model).name}
        for key in ("chunk", "recompute"):
            del dumped["loss"][key]
        return dumped


def shipped_train_specs() -> dict[str, Path]:
    """Return the files of the training specs that come with the package, by name."""
    from importlib import resources

    folder = Path(str(resources.files("eagle.specs"))) / "train"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_train_spec(spec: str | Path, overrides: Sequence[str] = ()) -> TrainSpec:
    """Read a training spec.

    Args:
        spec: path of a YAML file, or name of a shipped spec.
        overrides: ``path.to.key=value`` each, values in YAML.

    Raises:
        SpecError: there is no such file, it is not YAML, or a key or value is wrong.
    """
    shipped = shipped_train_specs()
    path = Path(spec).expanduser()
    if str(spec) in shipped:
        found = Document.read(shipped[str(spec)])
        # Nobody means the installed package's folder by a relative path.
        document = Document(str(spec), found.data, found.places)
    elif path.is_file() or path.suffix in (".yaml", ".yml"):
        document = Document.read(path)
    else:
        raise SpecError(
            f"no training spec is named {str(spec)!r}, and there is no such file."
            f"{nearest(str(spec), shipped)} Shipped: {', '.join(shipped)}."
        )
    document = document.override(overrides, {"features": "last-hidden", "head": "eagle"})
    loaded = document.validate(TrainSpec, document.data)
    loaded._document = document
    return loaded
